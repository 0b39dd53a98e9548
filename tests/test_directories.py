"""Directories of every kind: all bytes come back, and source and archive show the same tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import jentropy
from jentropy.checkpoints import choosing
from jentropy.errors import CheckError, InputError, MissingFileError

from .conftest import read_tree

NAMES = {"float32": "F32", "float16": "F16"}
RNG = np.random.default_rng(0)


def array(*shape: int, dtype: str = "float32") -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def write(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    header, at = {}, 0
    for name, values in arrays.items():
        end = at + values.nbytes
        dtype = NAMES[values.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(values.tobytes() for values in arrays.values())
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def index(file: Path, weight_map: Mapping[str, str]) -> None:
    file.write_text(json.dumps({"metadata": {}, "weight_map": dict(weight_map)}))


def write_gguf(file: Path, names: list[str], *, big: bool = False) -> None:
    gguf = pytest.importorskip("gguf", reason="extra gguf is not installed")
    order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(file, "llama", endianess=order)
    for name in names:
        rows = array(4, 64)
        if name.startswith("q"):
            packed = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
            if big:  # the scale is the first two bytes of a block
                blocks = packed.reshape(-1, 34)
                packed = np.hstack([blocks[:, 1::-1], blocks[:, 2:]]).reshape(packed.shape)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def shards(root: Path) -> dict[str, str]:
    write(root / A, {"a": array(8, 4), "b": array(3)})
    write(root / B, {"c": array(5)})
    return {"a": A, "b": A, "c": B}


def stale_entries(root: Path) -> None:
    index(root / INDEX, {**shards(root), "ghost": B})


def shards_that_the_index_does_not_name(root: Path) -> None:
    index(root / INDEX, shards(root))
    write(root / "model-00003-of-00003.safetensors", {"a": array(2), "d": array(2)})


def arrays_that_the_index_does_not_name(root: Path) -> None:
    found = shards(root)
    del found["b"]
    index(root / INDEX, found)


def overlaid(root: Path) -> None:
    write(root / A, {"a": array(8, 4), "b": array(3)})
    write(root / B, {"b": np.full(3, 7, np.float32), "c": array(5)})
    index(root / INDEX, {"a": A, "b": B, "c": B})


def moved(root: Path) -> None:
    index(root / INDEX, {**shards(root), "b": B})


def merged(root: Path) -> None:
    write(root / "model.safetensors", {"a": array(8, 4), "b": array(3)})
    index(root / INDEX, {"a": A, "b": B})


def two_precisions(root: Path) -> None:
    values = {"a": array(8, 4), "b": array(3)}
    write(root / "unet.safetensors", values)
    write(root / "unet.fp16.safetensors", {k: v.astype(np.float16) for k, v in values.items()})


def epochs(root: Path) -> None:
    for name in ("lora-000001", "lora-000002", "lora"):
        write(root / f"{name}.safetensors", {"a": array(8, 4)})


def variant_in_parts(root: Path) -> None:
    shards(root)
    write(root / "model.fp16-00001-of-00002.safetensors", {"a": array(2), "b": array(2)})
    write(root / "model.fp16-00002-of-00002.safetensors", {"c": array(2)})


def only_a_variant(root: Path) -> None:
    write(root / "unet.fp16-00001-of-00001.safetensors", {"a": array(2), "old": array(2)})
    index(
        root / "unet.safetensors.index.fp16.json",
        {"a": "unet.fp16-00001-of-00001.safetensors"},
    )


def variants_with_indices(root: Path) -> None:
    for name, dtype in (("unet", "float32"), ("unet.fp16", "float16")):
        write(root / f"{name}-1.safetensors", {"a": array(2, dtype=dtype)})
        index(root / f"{name}.safetensors.index.json", {"a": f"{name}-1.safetensors"})
    index(root / "unet.safetensors.fp16.index.json", {"a": "unet.fp16-1.safetensors"})


def index_of_another_model(root: Path) -> None:
    shards(root)
    index(root / INDEX, {"other.a": A, "other.b": B})


def pipeline(root: Path) -> None:
    (root / "model_index.json").write_text('{"_class_name": "P"}')
    write(root / "all_in_one.safetensors", {"x": array(2)})
    write(root / "unet" / "diffusion_pytorch_model.safetensors", {"w": array(8, 4)})
    write(root / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"w": array(4)})
    write(root / "text" / "model.safetensors", {"w": array(3)})
    (root / "text" / "config.json").write_text('{"model_type": "clip"}')
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text("{}")


def in_capitals(root: Path) -> None:
    write(root / "A.SAFETENSORS", {"a": array(8, 4)})
    write_gguf(root / "M.GGUF", ["q.weight"])


def folders(root: Path) -> None:
    write(root / "x" / "y" / "model.safetensors", {"w": array(3)})
    write(root / "z" / "model.safetensors", {"w": array(3)})
    write(root / ".cache" / "model.safetensors", {"w": array(3)})


def beside_the_model(root: Path) -> None:
    write(root / "model.safetensors", {"a": array(3)})
    write(root / "original" / "consolidated.safetensors", {"tok": array(3)})
    (root / "adapter.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    write_gguf(root / "model-q8.gguf", ["q.weight"])


def gguf_in_parts(root: Path) -> None:
    write_gguf(root / "m-00001-of-00002.gguf", ["a", "q.weight"])
    write_gguf(root / "m-00002-of-00002.gguf", ["b"])


def gguf_and_projector(root: Path) -> None:
    write_gguf(root / "m.gguf", ["a", "q.weight"])
    write_gguf(root / "mmproj-m-f16.gguf", ["v.a"])


def gguf_and_projectors(root: Path) -> None:
    write_gguf(root / "m.gguf", ["a", "q.weight"])
    for kind in ("BF16", "F16"):
        write_gguf(root / f"mmproj-{kind}.gguf", ["v.a"])


# A directory; what it shows; a note on what it does not.
SOUND: dict[Callable[[Path], None], tuple[list[str], str]] = {
    stale_entries: (["a", "b", "c"], "names ghost, which no file has"),
    shards_that_the_index_does_not_name: (["a", "b", "c"], "00003-of-00003.*not shown"),
    arrays_that_the_index_does_not_name: (["a", "c"], "00001-of-00002.*holds b,.*not shown"),
    overlaid: (["a", "b", "c"], "00001-of-00002.*holds b,"),
    moved: (["a", "b", "c"], "b lie in other files"),
    merged: (["a", "b"], "ignored, it names"),
    two_precisions: (["a", "b"], r"unet\.fp16\.safetensors.*not shown"),
    epochs: (["a"], "lora-000001.*lora-000002.*not shown"),
    variant_in_parts: (["a", "b", "c"], "fp16-00001-of-00002.*not shown"),
    only_a_variant: (["a"], "holds old"),
    variants_with_indices: (["a"], "fp16-1.*not shown"),
    index_of_another_model: (["a", "b", "c"], "ignored, it names no tensor"),
    pipeline: (["text/w", "unet/w"], r"all_in_one.*model\.fp16.*not shown"),
    in_capitals: (["a"], r"M\.GGUF.*not shown"),
    folders: (["x/y/w", "z/w"], r"\.cache"),
    beside_the_model: (["a"], r"adapter.*q8\.gguf.*consolidated.*not shown"),
    gguf_in_parts: (["a", "b", "q.weight"], ""),
    gguf_and_projector: (["a", "q.weight", "v.a"], ""),
    gguf_and_projectors: (["a", "q.weight"], "mmproj-BF16.*mmproj-F16.*not shown"),
}


@pytest.mark.parametrize("make", SOUND, ids=lambda make: make.__name__)
def test_every_byte_comes_back_and_both_show_the_same(make, tmp_path):
    source, dst = tmp_path / "source", tmp_path / "dst"
    source.mkdir()
    make(source)
    names, note = SOUND[make]
    jentropy.compress_checkpoint(source, dst)
    jentropy.decompress_checkpoint(dst, tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(source)
    ours, theirs = jentropy.open_checkpoint(dst), jentropy.open_checkpoint(source)
    assert ours.names() == theirs.names()
    assert sorted(ours.names()) == names
    assert ours.notes == theirs.notes
    assert bool(note) == bool(ours.notes)
    assert re.search(note, " ".join(ours.notes))
    for (a, mine), (b, other) in zip(ours.read_all(), theirs.read_all(), strict=True):
        assert (a.name, a.format, a.shape) == (b.name, b.format, b.shape)
        assert mine.keys() == other.keys()
        assert all(np.array_equal(mine[key], other[key]) for key in mine)
    inspection = jentropy.inspect(dst)
    assert [row["name"] for row in inspection.tensors] == ours.names()
    assert inspection.weights == sum(np.prod(t.shape) for t in map(ours.tensor, ours.names()))
    # Verification compares all of it, what is not shown too.
    assert jentropy.verify(dst, against=source).files == len(read_tree(source))
    for file in sorted(p for p in source.rglob("*") if p.is_file())[:2]:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(CheckError, match=re.escape(file.name)):
            jentropy.verify(dst, against=source)
        data[-1] ^= 1
        file.write_bytes(data)


def test_the_index_decides_between_duplicates(tmp_path):
    overlaid(tmp_path)
    np.testing.assert_array_equal(
        jentropy.open_checkpoint(tmp_path).tensor("b").values(), np.full(3, 7)
    )


def no_base(root: Path) -> None:
    write(root / "epoch1.safetensors", {"a": array(8, 4)})
    write(root / "epoch2.safetensors", {"a": array(8, 4)})


def shards_that_overlap(root: Path) -> None:
    write(root / A, {"a": array(8, 4), "b": array(3)})
    write(root / B, {"b": array(3)})


def several_indices(root: Path) -> None:
    for name in ("x", "y"):
        write(root / f"{name}-1.safetensors", {name: array(3)})
        index(root / f"{name}.safetensors.index.json", {name: f"{name}-1.safetensors"})


def damaged_index(root: Path) -> None:
    shards(root)
    (root / INDEX).write_text("{")


def damaged_config(root: Path) -> None:
    shards(root)
    (root / "config.json").write_text("{")


AMBIGUOUS = {
    no_base: (["epoch1/a", "epoch2/a"], "tensor in two files.*open one"),
    shards_that_overlap: (
        [f"{A[:-12]}/a", f"{A[:-12]}/b", f"{B[:-12]}/b"],
        "tensor in two files",
    ),
    several_indices: (["x", "y"], "several indices"),
    damaged_index: (["a", "b", "c"], "index.json.*not JSON"),
    damaged_config: (["a", "b", "c"], "config.json.*not JSON"),
}


@pytest.mark.parametrize("make", AMBIGUOUS, ids=lambda make: make.__name__)
def test_what_cannot_be_opened_is_archived_all_the_same(make, tmp_path):
    source, dst = tmp_path / "source", tmp_path / "dst"
    source.mkdir()
    make(source)
    names, message = AMBIGUOUS[make]
    jentropy.compress_checkpoint(source, dst)
    jentropy.decompress_checkpoint(dst, tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(source)
    for path in (source, dst):
        with pytest.raises(InputError, match=message):
            jentropy.open_checkpoint(path)
    inspection = jentropy.inspect(dst)
    assert sorted(row["name"] for row in inspection.tensors) == names
    assert re.search(message, " ".join(inspection.notes))


@pytest.mark.parametrize("has_index", [True, False])
def test_a_missing_shard_is_one_error_everywhere(has_index, tmp_path):
    source = tmp_path / "source"
    names = shards(source)
    if has_index:
        index(source / INDEX, names)
    (source / B).unlink()
    message = f"{INDEX if has_index else 'source'}: .*missing shard {B}.*fetch it"
    calls: list[Callable[[Path], object]] = [
        jentropy.open_checkpoint,
        jentropy.analyze,
        lambda path: jentropy.compress_checkpoint(path, tmp_path / "dst"),
    ]
    for call in calls:
        with pytest.raises(MissingFileError, match=message):
            call(source)
    assert not (tmp_path / "dst").exists()
    assert jentropy.open_checkpoint(source / A).names() == ["a", "b"]


def test_files_and_folders_in_an_archive_open_by_their_paths(tmp_path):
    source, dst = tmp_path / "source", tmp_path / "dst"
    source.mkdir()
    pipeline(source)
    no_base(source / "more")
    jentropy.compress_checkpoint(source, dst)
    for path in ("text", "unet", "more/epoch2.safetensors", "all_in_one.safetensors"):
        ours, theirs = jentropy.open_checkpoint(dst / path), jentropy.open_checkpoint(source / path)
        assert ours.names() == theirs.names()
        assert ours.config == theirs.config
        name = ours.names()[0]
        np.testing.assert_array_equal(ours.tensor(name).values(), theirs.tensor(name).values())
    assert jentropy.open_checkpoint(dst / "text").config == {"model_type": "clip"}
    assert jentropy.analyze(dst / "unet").weights == 32
    assert jentropy.inspect(dst / "unet").weights == 32
    whole, part = (jentropy.inspect(path) for path in (dst, dst / "unet"))
    assert part.archive_bytes + part.other_files_bytes == (
        whole.archive_bytes + whole.other_files_bytes
    )
    for path in ("nothing", "text/nothing"):
        with pytest.raises(InputError, match="no such file or directory"):
            jentropy.open_checkpoint(dst / path)


def test_a_damaged_file_of_the_model_is_refused_and_named(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    index(source / INDEX, shards(source))
    (source / B).write_bytes((source / B).read_bytes()[:-3])
    with pytest.raises(InputError, match=B):
        jentropy.compress_checkpoint(source, tmp_path / "dst")


def test_files_beside_the_model_are_coded_as_tensors(tmp_path):
    """Their weights shrink as the model's do, whichever kind of file they lie in."""
    two_precisions(tmp_path / "source")
    write_gguf(tmp_path / "source" / "m.gguf", ["a", "q.weight"])
    jentropy.compress_checkpoint(tmp_path / "source", tmp_path / "dst")
    store = jentropy.checkpoints.store.Store(tmp_path / "dst")
    assert {f.path: f.model for f in store.index.files if f.parts is not None} == {
        "unet.safetensors": True,
        "unet.fp16.safetensors": False,
        "m.gguf": False,
    }


def test_big_endian_gguf_has_the_same_values(tmp_path, monkeypatch):
    for name, big in (("little", False), ("big", True)):
        monkeypatch.setattr(f"{__name__}.RNG", np.random.default_rng(1))
        write_gguf(tmp_path / f"{name}.gguf", ["a", "q.weight"], big=big)
    jentropy.compress_checkpoint(tmp_path / "big.gguf", tmp_path / "dst")
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    assert (tmp_path / "out" / "big.gguf").read_bytes() == (tmp_path / "big.gguf").read_bytes()
    expected = jentropy.open_checkpoint(tmp_path / "little.gguf")
    for path in (tmp_path / "big.gguf", tmp_path / "dst"):
        found = jentropy.open_checkpoint(path)
        for name in ("a", "q.weight"):
            a, b = found.tensor(name), expected.tensor(name)
            assert (a.format, a.shape) == (b.format, b.shape)
            np.testing.assert_array_equal(a.dequantize(), b.dequantize())


def test_the_choice_scales(tmp_path):
    """Linear in the number of tensors: half a million take a second or two."""
    count = 20_000
    files = [f"m-{i:05d}.safetensors" for i in range(20)]
    inside = {f: [f"t{i}" for i in range(k, count, 20)] for k, f in enumerate(files)}
    weight_map = {name: file for file, names in inside.items() for name in names}
    text = json.dumps({"weight_map": weight_map}).encode()
    choice = choosing.choose(
        tmp_path, [*files, "m.safetensors.index.json"], inside.__getitem__, lambda file: text
    )
    assert sum(map(len, choice.components[0].files.values())) == count


def test_a_file_alone_says_nothing_of_its_siblings(tmp_path):
    shards(tmp_path)
    jentropy.compress_checkpoint(tmp_path / A, tmp_path / "dst")
    assert jentropy.open_checkpoint(tmp_path / A).notes == ()
    assert jentropy.open_checkpoint(tmp_path / "dst").notes == ()
