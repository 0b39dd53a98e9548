"""Compressed checkpoints: the way there and back, what stock Orbax sees, and every kind of harm."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy.checkpoints import compressing, entries, staging, store, writer
from jentropy.checkpoints import index as index_lib
from jentropy.errors import (
    CheckError,
    ChecksumError,
    CorruptError,
    DestinationError,
    InputError,
    TruncatedError,
    UnsupportedError,
)

from .conftest import read_tree, same_bits

FLOATS = ("llama_bf16", "llama_fp16", "llama_fp32", "qwen3_bf16_sharded", "qwen3_bf16_tied")
BUNDLE, INDEX = "state/bundles.00000/c/0", "state/index/c/0"
COPY = "state/copy/c/0"


@pytest.fixture
def copy(packed, tmp_path) -> Path:
    """A compressed checkpoint to damage."""
    return Path(shutil.copytree(packed["llama_bf16"], tmp_path / "copy"))


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("name", FLOATS)
def test_files_come_back_byte_for_byte(name, packed, fixtures, tmp_path):
    jentropy.decompress_checkpoint(packed[name], tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(fixtures / name)
    assert left_in(tmp_path) == ["out"]
    result = jentropy.verify(packed[name], against=fixtures / name)
    assert result.compared
    assert result.files == len(read_tree(fixtures / name))


@pytest.mark.parametrize("name", FLOATS)
def test_the_compressed_checkpoint_is_a_checkpoint(name, packed, fixtures):
    source, ours = (jentropy.open_checkpoint(p / name) for p in (fixtures, packed[name].parent))
    assert sorted(ours.names()) == sorted(source.names())
    assert ours.config == source.config
    for tensor in source.names():
        a, b = source.tensor(tensor), ours.tensor(tensor)
        assert (a.format, a.shape, a.dtype) == (b.format, b.shape, b.dtype)
    some = source.names()[3]
    np.testing.assert_array_equal(
        ours.tensor(some).codes["code"], source.tensor(some).codes["code"]
    )
    reports = [jentropy.analyze(path).to_json() for path in (fixtures / name, packed[name])]
    assert reports[0]["formats"] == reports[1]["formats"]


def test_files_of_all_kinds_come_along(fixtures, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(fixtures / "llama_fp16", source)
    (source / "empty.txt").touch()
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "noise.bin").write_bytes(os.urandom(3_000_000))
    (source / "deep" / "more.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (source / "link.json").symlink_to("config.json")
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(source)
    inspection = jentropy.inspect(tmp_path / "dst")
    assert len(inspection.tensors) * 2 == len(store.Store(tmp_path / "dst").index.tensors)
    assert inspection.other_files_bytes > 3_000_000


def test_a_single_file_is_a_source(fixtures, tmp_path):
    file = fixtures / "llama_fp32" / "model.safetensors"
    jentropy.compress_checkpoint(file, tmp_path / "dst")
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    assert read_tree(tmp_path / "out") == {file.name: file.read_bytes()}


def test_the_same_source_gives_the_same_bytes(packed, fixtures, tmp_path):
    jentropy.compress_checkpoint(fixtures / "llama_bf16", tmp_path / "again")
    first, second = read_tree(packed["llama_bf16"]), read_tree(tmp_path / "again")
    assert first.keys() == second.keys()
    differ = {name for name in first if first[name] != second[name]}
    assert differ <= {"_CHECKPOINT_METADATA", "commit_success.txt"}  # Orbax writes times and paths


def test_stock_orbax_opens_it_as_plain_arrays(packed):
    from orbax.checkpoint import v1 as ocp

    tree = ocp.load(packed["qwen3_bf16_tied"])
    assert set(tree) == {"bundles", "copy", "index"}
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.uint8)}
    assert len(jax.tree.leaves(tree)) == 3  # small tensors are bundled
    index = zlib.decompress(np.asarray(tree["index"]).tobytes())
    assert json.loads(index)["jentropy"] == entries.VERSION


def test_inspect_counts_everything(packed, fixtures):
    inspection = jentropy.inspect(packed["llama_bf16"])
    on_disk = sum(len(data) for data in read_tree(packed["llama_bf16"]).values())
    assert inspection.archive_bytes + inspection.other_files_bytes == on_disk
    source = jentropy.analyze(fixtures / "llama_bf16")
    assert inspection.weights == source.weights
    joint = sum(t.joint_entropy_bits * np.prod(t.shape) for t in source.tensors) / source.weights
    assert inspection.per_tensor_joint_bits == pytest.approx(joint, abs=1e-5)
    for row in inspection.tensors:
        assert row["gap_bits"] == pytest.approx(row["bits_per_weight"] - row["joint_entropy_bits"])


def tree() -> dict:
    rng = np.random.default_rng(0)
    return {
        "layers": [{"w": jnp.asarray(rng.standard_normal((64, 48)) * 0.02, jnp.bfloat16)}, None],
        "step": np.int64(2**40),
        "numbered": {3: (np.arange(3), {}), 11: [], 5: True},
        "half": rng.standard_normal((3, 1000)).astype(np.float16),
    }


def test_save_and_load_a_tree(tmp_path):
    jentropy.save(tmp_path / "t", jentropy.compress(tree()))
    back = jentropy.decompress(jentropy.load(tmp_path / "t"))
    assert jax.tree.structure(back) == jax.tree.structure(tree())
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree()), strict=True):
        assert (b is True and a is b) or same_bits(a, np.asarray(b) if np.isscalar(b) else b)
    assert jentropy.verify(tmp_path / "t").tensors == 4
    assert "layers.0.w" in jentropy.open_checkpoint(tmp_path / "t").names()


def test_save_takes_bare_arrays_and_nodes_of_other_kinds(tmp_path):
    from typing import NamedTuple

    class Pair(NamedTuple):
        left: np.ndarray
        right: np.ndarray

    jentropy.save(tmp_path / "bare", np.arange(4))
    assert same_bits(jentropy.decompress(jentropy.load(tmp_path / "bare")), np.arange(4))
    jentropy.save(tmp_path / "pair", Pair(np.zeros(2), np.ones(2)))
    back = jentropy.decompress(jentropy.load(tmp_path / "pair"))
    assert back.keys() == {"left", "right"}
    jentropy.save(tmp_path / "empty", {})
    assert jentropy.load(tmp_path / "empty") == {}


def test_load_with_a_sharding_places_the_tensors(tmp_path):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    values = np.arange(64, dtype=np.float16).reshape(8, 8)
    jentropy.save(tmp_path / "t", {"w": values})
    back = jentropy.decompress(jentropy.load(tmp_path / "t", sharding=sharding))["w"]
    assert back.sharding == sharding
    np.testing.assert_array_equal(back, values)
    back = jentropy.decompress(jentropy.load(tmp_path / "t", sharding={"w": sharding}))["w"]
    assert back.sharding == sharding


def test_an_orbax_checkpoint_goes_there_and_back(tmp_path):
    from orbax.checkpoint import v1 as ocp

    arrays = {"a": {"w": jnp.asarray(np.arange(12).reshape(3, 4), jnp.bfloat16)}, "b": [np.ones(5)]}
    ocp.save(tmp_path / "stock", arrays)
    report = jentropy.analyze(tmp_path / "stock")
    assert [t.name for t in report.tensors] == ["a.w", "b.0"]
    jentropy.compress_checkpoint(tmp_path / "stock", tmp_path / "dst")
    assert jentropy.verify(tmp_path / "dst", against=tmp_path / "stock").compared
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    back = ocp.load(tmp_path / "out", arrays)  # without a target Orbax warns, as of the source
    np.testing.assert_array_equal(back["a"]["w"], arrays["a"]["w"])
    assert back["a"]["w"].dtype == ml_dtypes.bfloat16
    changed = {"a": {"w": arrays["a"]["w"] + 1}, "b": arrays["b"]}
    ocp.save(tmp_path / "other", changed)
    with pytest.raises(CheckError, match=r"'a\.w' differs"):
        jentropy.verify(tmp_path / "dst", against=tmp_path / "other")


def test_verify_finds_what_differs_from_the_source(packed, fixtures, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(fixtures / "llama_bf16", source)
    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (source / "model.safetensors").write_bytes(weights)
    with pytest.raises(
        CheckError, match=rf"model\.safetensors: differs from byte {len(weights) - 1}"
    ):
        jentropy.verify(packed["llama_bf16"], against=source)
    shutil.copy(fixtures / "llama_bf16" / "model.safetensors", source / "model.safetensors")
    with (source / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(CheckError, match="longer"):
        jentropy.verify(packed["llama_bf16"], against=source)
    (source / "extra").touch()
    with pytest.raises(CheckError, match="only in the source"):
        jentropy.verify(packed["llama_bf16"], against=source)
    with pytest.raises(InputError, match="no such file"):
        jentropy.verify(packed["llama_bf16"], against=tmp_path / "none")


def flip(file: Path, at: int, bit: int = 1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= bit
    file.write_bytes(data)


@pytest.mark.parametrize("where", [0.001, 0.3, 0.7, 0.999])
def test_a_flipped_bit_is_found_and_named(copy, where, tmp_path):
    size = store.Store(copy).index.bundles[0]
    flip(copy / BUNDLE, int(where * size))
    for name, run in {
        "verify": lambda: jentropy.verify(copy),
        "load": lambda: jentropy.decompress(jentropy.load(copy)),
        "decompress": lambda: jentropy.decompress_checkpoint(copy, tmp_path / "out"),
    }.items():
        if name == "load" and where < 0.01:
            run()  # reads the weights only; the config lies outside of them
            continue
        with pytest.raises(ChecksumError, match=r"bundles\.00000.*tensor '") as raised:
            run()
        assert raised.value.tensor
    assert not (tmp_path / "out").exists()


def test_a_damaged_index_is_found(copy):
    flip(copy / INDEX, 50)
    assert jentropy.inspect(copy).weights  # its copy is sound
    with pytest.raises(ChecksumError, match=r"index.c.0: checksum") as raised:
        jentropy.verify(copy)
    assert not raised.value.others
    flip(copy / COPY, 50)
    with pytest.raises(ChecksumError, match="index"):
        jentropy.inspect(copy)


@pytest.mark.parametrize("name", [BUNDLE, INDEX])
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty"])
def test_lost_data_are_found(copy, name, harm):
    file = copy / name
    if harm == "missing":
        file.unlink()  # zarr reads what is missing as zeros
    else:
        file.write_bytes(file.read_bytes()[:1000] if harm == "truncated" else b"")
    with pytest.raises((TruncatedError, CorruptError), match=name.split("/")[1]):
        jentropy.verify(copy)
    shutil.rmtree(copy / "state" / "copy")
    with pytest.raises(TruncatedError, match=name.split("/")[1]):
        jentropy.load(copy)


@pytest.mark.parametrize("name", ["state/bundles.00000", "state/index", "state"])
def test_a_lost_array_is_found(copy, name):
    shutil.rmtree(copy / name)
    with pytest.raises(InputError, match=r"state|bundles"):
        jentropy.verify(copy)


def test_an_array_that_claims_to_be_huge_is_not_allocated(copy):
    shutil.rmtree(copy / "state" / "copy")
    file = copy / "state" / "index" / "zarr.json"
    content = json.loads(file.read_text())
    content["shape"] = [3_000_000_000]
    file.write_text(json.dumps(content))
    with pytest.raises(CorruptError, match=r"shape \[3000000000\]"):
        jentropy.inspect(copy)
    content["chunk_grid"]["configuration"]["chunk_shape"] = content["shape"]
    file.write_text(json.dumps(content))
    with pytest.raises(TruncatedError, match="expected 3000000000 bytes"):
        jentropy.inspect(copy)


def test_verify_sees_with_the_eyes_of_orbax(copy):
    (copy / "state" / "_METADATA").unlink()
    with pytest.raises(InputError, match=r"Orbax|_METADATA"):
        jentropy.verify(copy)


def test_other_directories_are_no_compressed_checkpoints(copy, fixtures, tmp_path):
    (copy / "_CHECKPOINT_METADATA").unlink()
    for path in (copy, fixtures / "llama_bf16", tmp_path / "none"):
        with pytest.raises(InputError, match="not a compressed checkpoint"):
            jentropy.load(path)


HOSTILE = {
    "newer version": ("jentropy", 4, UnsupportedError, "version"),
    "no version": ("jentropy", None, UnsupportedError, "version"),
    "no bundles": ("bundles", 3, CorruptError, "bundles"),
    "negative bundle": ("bundles", [-1], CorruptError, "bundles"),
    "smaller bundle": ("bundles", [10], CorruptError, "within bundle"),
    "tensors no list": ("tensors", {}, CorruptError, "tensors"),
    "tensors no objects": ("tensors", [3], CorruptError, "tensors"),
    "entry codec": ("tensors.0.codec", "huffman", UnsupportedError, "'huffman'"),
    "entry format": ("tensors.0.format", "FP5", UnsupportedError, "'FP5'"),
    "entry dtype": ("tensors.0.dtype", "float32", CorruptError, "dtype"),
    "entry dtype unknown": ("tensors.0.dtype", "object", UnsupportedError, "dtype"),
    "entry shape": ("tensors.0.shape", [2**70, 2**70], CorruptError, "shape"),
    "large shape": ("tensors.0.shape", [2**29, 2**29], CorruptError, "chunks"),
    "huge and empty": ("tensors.0.shape", [2**40, 2**40, 0], CorruptError, "shape"),
    "negative shape": ("tensors.0.shape", [-1, 4], CorruptError, "shape"),
    "entry head": ("tensors.0.head", "??", CorruptError, "head"),
    "entry head no text": ("tensors.0.head", 3, CorruptError, "head"),
    "entry entropy": ("tensors.0.entropy_bits", "x", CorruptError, "entropy"),
    "chunk beyond": ("tensors.0.chunks.0.1", 10**9, CorruptError, "within bundle"),
    "chunk bundle": ("tensors.0.chunks.0.0", 7, CorruptError, "bundle"),
    "many axes": ("tensors.0.shape", [int("9" * 4000)] * 300, CorruptError, "shape"),
    "hash of other digits": ("tensors.0.chunks.0.3", "0x00000000000001", CorruptError, "hash"),
    "hash too long": ("tensors.0.chunks.0.3", "f" * 100_000, CorruptError, "hash"),
    "dtype of commas": ("tensors.0.dtype", "i4,,", UnsupportedError, "dtype"),
    "dtype of text": ("tensors.0.dtype", "S5", UnsupportedError, "dtype"),
    "dtype of the other order": ("tensors.0.dtype", ">u2", UnsupportedError, "dtype"),
    "version true": ("jentropy", True, UnsupportedError, "version"),
    "chunk hash": ("tensors.0.chunks.0.3", "xyz", CorruptError, "hash"),
    "no chunks": ("tensors.0.chunks", [], CorruptError, "chunks"),
    "file upwards": ("files.0.path", "../evil", CorruptError, "path"),
    "file absolute": ("files.0.path", "/etc/evil", CorruptError, "path"),
    "file no text": ("files.0.path", "\ud800", CorruptError, "path"),
    "file empty": ("files.0.path", "", CorruptError, "path"),
    "file blob": ("files.0.blob", 99, CorruptError, "blob"),
    "file parts": ("files.2.parts", [0, 999], CorruptError, "parts"),
    "file twice": ("files.1.path", "config.json", CorruptError, "once"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_index_is_refused(name, packed):
    path, value, error, message = HOSTILE[name]
    opened = store.Store(packed["llama_bf16"])
    content = json.loads(zlib.decompress(opened.array("index").tobytes()))
    node = content
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    for key in parents:
        node = node[key]
    node[last] = value
    with pytest.raises(error, match=message) as raised:
        index_lib.from_json(json.dumps(content).encode(), Path("state/index"))
    assert "state/index" in str(raised.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"nul", b"\xff", b"[" * 100_000, b'{"jentropy":1}'])
def test_an_index_that_is_none_is_refused(text):
    with pytest.raises(CorruptError, match="index"):
        index_lib.from_json(text, Path("state/index"))


def test_a_newer_version_is_refused_by_number(copy):
    file = copy / "_CHECKPOINT_METADATA"
    content = json.loads(file.read_text())
    content["custom_metadata"]["jentropy"]["version"] = 4
    file.write_text(json.dumps(content))
    with pytest.raises(UnsupportedError, match="expected 3 or lower, found 4"):
        jentropy.load(copy)


def test_a_destination_that_exists_is_left_alone(packed, fixtures, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("x")
    for run in (
        lambda: jentropy.compress_checkpoint(fixtures / "llama_bf16", taken),
        lambda: jentropy.decompress_checkpoint(packed["llama_bf16"], taken),
        lambda: jentropy.save(taken, np.ones(3)),
    ):
        with pytest.raises(DestinationError, match="exists"):
            run()
    assert read_tree(tmp_path) == {"taken/mine": b"x"}


def test_names_that_others_would_expand_or_take(fixtures, tmp_path):
    beside = tmp_path / "m[red]x.partial_save"
    beside.mkdir()
    (beside / "mine").touch()
    target = tmp_path / "m[red]x"
    jentropy.compress_checkpoint(fixtures / "llama_fp16", target)
    assert jentropy.verify(target, against=fixtures / "llama_fp16").compared
    assert left_in(tmp_path) == ["m[red]x", "m[red]x.partial_save"]
    assert left_in(beside) == ["mine"]


def test_two_runs_to_one_destination_do_not_mix(fixtures, tmp_path):
    with (
        staging.staged(tmp_path / "dst", "compress"),
        pytest.raises(DestinationError, match="another process"),
    ):
        jentropy.compress_checkpoint(fixtures / "llama_fp16", tmp_path / "dst")
    jentropy.compress_checkpoint(fixtures / "llama_fp16", tmp_path / "dst")
    assert left_in(tmp_path) == ["dst"]


def test_linked_folders_come_along_and_circles_are_refused(fixtures, tmp_path):
    source = Path(shutil.copytree(fixtures / "llama_fp16", tmp_path / "source"))
    (source / "x").mkdir()
    (source / "x" / "f.txt").write_text("f")
    (source / "y").symlink_to("x")
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    assert read_tree(tmp_path / "out")["y/f.txt"] == b"f"
    (source / "x" / "up").symlink_to("..")
    with pytest.raises(InputError, match="circle"):
        jentropy.compress_checkpoint(source, tmp_path / "again")


def test_files_that_cannot_be_kept_are_refused_before_anything_is_written(fixtures, tmp_path):
    source = Path(shutil.copytree(fixtures / "llama_fp16", tmp_path / "source"))
    (source / "we\\ird.txt").touch()
    with pytest.raises(InputError, match="backslash"):
        jentropy.compress_checkpoint(source, tmp_path / "dst")
    assert left_in(tmp_path) == ["source"]


def test_a_broken_safetensors_file_beside_the_model_is_kept_as_bytes(fixtures, tmp_path):
    source = Path(shutil.copytree(fixtures / "llama_fp16", tmp_path / "source"))
    (source / "adapter.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(source)


def test_a_source_that_changes_meanwhile_is_refused(fixtures, tmp_path, monkeypatch):
    source = Path(shutil.copytree(fixtures / "llama_fp16", tmp_path / "source"))
    write = compressing.write

    def write_and_touch(*arguments):
        entries = write(*arguments)
        (source / "config.json").write_text("{}")
        return entries

    monkeypatch.setattr(compressing, "write", write_and_touch)
    with pytest.raises(InputError, match="changed while"):
        jentropy.compress_checkpoint(source, tmp_path / "dst")
    assert left_in(tmp_path) == [".dst.jentropy-compress", "source"]
    monkeypatch.undo()
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    assert jentropy.verify(tmp_path / "dst", against=source).compared


def test_what_orbax_does_not_store_is_an_error_not_a_wreck(tmp_path, packed):
    jentropy.save(tmp_path / "t", {"a": np.zeros((0, 3), np.float32)})
    with pytest.raises(UnsupportedError, match="Orbax"):
        jentropy.decompress_checkpoint(tmp_path / "t", tmp_path / "out")
    with pytest.raises(InputError, match="inside"):
        jentropy.decompress_checkpoint(packed["llama_fp16"], packed["llama_fp16"] / "out")
    assert left_in(tmp_path) == ["t"]
    deep = np.ones(1)
    for _ in range(300):
        deep = [deep]
    with pytest.raises(InputError, match="depth"):
        jentropy.save(tmp_path / "deep", deep)


def test_a_compressed_checkpoint_is_not_compressed_again(packed, tmp_path):
    with pytest.raises(InputError, match="already"):
        jentropy.compress_checkpoint(packed["llama_bf16"], tmp_path / "x")


def test_the_destination_may_not_lie_in_the_source(fixtures, tmp_path):
    source = Path(shutil.copytree(fixtures / "llama_fp16", tmp_path / "source"))
    with pytest.raises(InputError, match="inside the source"):
        jentropy.compress_checkpoint(source, source / "dst")
    assert read_tree(source) == read_tree(fixtures / "llama_fp16")


def test_a_full_disk_leaves_what_is_done_and_says_so(fixtures, packed, tmp_path, monkeypatch):
    from orbax.checkpoint import v1 as ocp

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def compress():
        jentropy.compress_checkpoint(fixtures / "llama_bf16", tmp_path / "new" / "dst")

    def decompress():
        jentropy.decompress_checkpoint(packed["llama_bf16"], tmp_path / "new" / "dst")

    for run, place, name in (
        (compress, os, "fsync"),
        (compress, ocp.partial, "finalize"),
        (compress, os, "rename"),
        (decompress, os, "fsync"),
        (decompress, os, "rename"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(DestinationError, match="No space left on device") as raised:
                run()
        (stage,) = (tmp_path / "new").iterdir()
        assert raised.value.__notes__[0].startswith(f"what is done lies in {stage}; ")
        run()
        assert left_in(tmp_path / "new") == ["dst"]
        shutil.rmtree(tmp_path / "new" / "dst")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DestinationError, match="No space left on device"):
            jentropy.save(tmp_path / "other" / "dst", np.ones(3))
    jentropy.save(tmp_path / "other" / "dst", np.ones(3))
    assert left_in(tmp_path / "other") == ["dst"]


KILLED = """
import os, sys
from jentropy.checkpoints import compressing, writer
writer.BUNDLE_BYTES = 100_000
flush, count = writer.Writer.flush, 0
def flush_and_die(self):
    global count
    flush(self)
    count += 1
    if count == 3:
        os.kill(os.getpid(), 9)
writer.Writer.flush = flush_and_die
compressing.compress_checkpoint(sys.argv[1], sys.argv[2])
"""


def test_killed_work_is_taken_up(fixtures, tmp_path, monkeypatch):
    source, target = fixtures / "llama_bf16", tmp_path / "dst"
    monkeypatch.setattr(writer, "BUNDLE_BYTES", 100_000)
    jentropy.compress_checkpoint(source, tmp_path / "whole")
    assert len(store.Store(tmp_path / "whole").index.bundles) > 4

    killed = subprocess.run([sys.executable, "-c", KILLED, source, target], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    (stage,) = tmp_path.glob(".*jentropy-compress")
    chunks = sorted(stage.glob("out/state/bundles.*/c/0"))
    assert len(chunks) == 3
    with (stage / "journal.jsonl").open("a") as journal:
        journal.write('{"entries": [1, "ha')  # a line that was cut off
    chunks[2].write_bytes(b"lost")  # and a bundle that was not quite written

    taken_up = []
    append = writer.Writer.append

    def counting(self, payload):
        taken_up.append(payload.size)
        return append(self, payload)

    monkeypatch.setattr(writer.Writer, "append", counting)
    jentropy.compress_checkpoint(source, target)
    assert sum(taken_up) < sum(store.Store(target).index.bundles)
    first, second = read_tree(tmp_path / "whole"), read_tree(target)
    assert {n for n in first if first[n] != second.get(n)} <= {
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
    }
    assert left_in(tmp_path) == ["dst", "whole"]


def test_staged_work_of_another_source_is_thrown_away(fixtures, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index_lib, "to_bytes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            jentropy.compress_checkpoint(fixtures / "llama_bf16", tmp_path / "dst")
    assert left_in(tmp_path) == [".dst.jentropy-compress"]
    jentropy.compress_checkpoint(fixtures / "llama_fp16", tmp_path / "dst")
    assert jentropy.verify(tmp_path / "dst", against=fixtures / "llama_fp16").compared
    assert left_in(tmp_path) == ["dst"]


def test_sources_on_the_hub_are_downloaded_first(fixtures, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="extra hub is not installed")
    asked = []

    def download(name, revision=None, **_):
        asked.append((name, revision))
        return str(fixtures / "llama_fp16")

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert "lm_head.weight" in jentropy.open_checkpoint("hf://owner/name").names()
    jentropy.analyze("hf://owner/name@v1")
    assert asked == [("owner/name", None), ("owner/name", "v1")]

    def fail(*_, **__):
        raise OSError("no network\nat all")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(
        InputError, match="hf://owner/name: cannot be downloaded: no network at all"
    ):
        jentropy.open_checkpoint("hf://owner/name")


def test_an_index_that_unpacks_to_too_much_is_refused():
    bomb = zlib.compress(b'{"jentropy":1,"x":[' + b"1," * 30_000_000 + b"1]}", 9)
    with pytest.raises(CorruptError, match="in proportion"):
        index_lib.from_bytes(bomb, Path("state/index"))
    for data in (b"", b"x", zlib.compress(b"{}") + b"more", zlib.compress(b"{}")[:-3]):
        with pytest.raises(CorruptError, match="index"):
            index_lib.from_bytes(data, Path("state/index"))
