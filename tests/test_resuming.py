"""Work that was killed or failed: what stays, what is taken up, and what is not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jentropy
from jentropy.checkpoints import (
    compressing,
    decompressing,
    durable,
    exporting,
    items,
    mapping,
    staging,
    store,
    writer,
    zarr_files,
)
from jentropy.errors import DestinationError, InputError

from .conftest import ROOT
from .soak.measuring import write_safetensors
from .soak.sources import alike, noise

TENSOR = 10_000  # bytes of the tensors of `noise`


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(writer, "BUNDLE_BYTES", 3 * TENSOR)
    return noise(tmp_path / "x")


def die(*_, **__):
    raise SystemExit


def stages(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*"))


def stopped(source: Path, dst: Path, monkeypatch) -> Path:
    """Compresses until all is staged and nothing is in place; the stage."""
    with monkeypatch.context() as patch:
        patch.setattr(writer, "put_in_place", die)
        with pytest.raises(SystemExit) as raised:
            jentropy.compress_checkpoint(source, dst)
    stage = dst.parent / f".{dst.name}.jentropy-compress"
    assert raised.value.__notes__ == [
        f"what is done lies in {stage}; the same command goes on from there, "
        f"`rm -r {stage}` gives it up"
    ]
    assert not dst.exists()
    return stage


def taken_up(monkeypatch) -> list[str]:
    """Names of the entries that the next run takes up."""
    names, take_up = [], writer.Writer.take_up

    def noted(self, entry):
        done = take_up(self, entry)
        names.extend([entry.name] * done)
        return done

    monkeypatch.setattr(writer.Writer, "take_up", noted)
    return names


def test_commands_survive_random_kills(tmp_path):
    commands = ["compress-noise", "decompress-noise", "salvage", "repair"]
    arguments = [tmp_path / "kills", "--kills", "2", "--commands", *commands]
    run = [sys.executable, "-m", "tests.soak.kills", *arguments]
    done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)
    assert [line.split(",")[0] for line in done.stdout.splitlines() if " kills" in line] == [
        f"{command}: 2 kills" for command in commands
    ]
    assert not list(tmp_path.iterdir())


def test_more_bundles_than_descriptors(tmp_path, source, monkeypatch):
    monkeypatch.setattr(writer, "BUNDLE_BYTES", 1)
    monkeypatch.setattr(store, "OPEN_FILES", 4)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 100
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    bundles = len(store.Store(tmp_path / "dst").index.bundles)
    assert bundles == 62  # a tensor each, and two files' own
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, hard[1]))
    try:
        tree = jentropy.decompress(jentropy.load(tmp_path / "dst"))
        opened = jentropy.open_checkpoint(tmp_path / "dst")
        assert all((t.codes["code"] == tree[t.name]).all() for t, _ in opened.read_all())
        jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, hard)
    assert alike(tmp_path / "out", source)


def test_maps_keep_no_descriptor(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    before = os.listdir("/proc/self/fd")
    maps = [mapping.mapped(tmp_path / "f", size) for size in (1, 3, None, 0)]
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert [bytes(m) for m in maps] == [b"a", b"abc", b"abc", b""]
    with pytest.raises(ValueError, match="read-only"):
        maps[1][0] = 0


def test_bundles_are_what_orbax_would_write(tmp_path):
    jentropy.save(tmp_path / "t", {"w": np.arange(3000)})
    for name in ("index", "bundles.00000"):  # Orbax writes the one, the writer all others
        folder = tmp_path / "t" / "state" / name
        data = (folder / "c/0").read_bytes()
        size = len(data) - zarr_files.INDEX_BYTES
        assert (folder / "zarr.json").read_bytes() == zarr_files.metadata(size)
        assert data[size:] == zarr_files.shard_index(size)
        assert zarr_files.is_array(folder, size)
        assert not zarr_files.is_array(folder, size - 1)
    told = json.loads((tmp_path / "t/state/_METADATA").read_bytes())["tree_metadata"]
    bundle, index = told["('bundles', '00000')"], told["('index',)"]
    assert bundle["value_metadata"] == index["value_metadata"]
    assert [key["key"] for key in bundle["key_metadata"]] == ["bundles", "00000"]


def test_all_that_is_whole_is_taken_up(tmp_path, source, monkeypatch):
    stage = stopped(source, tmp_path / "dst", monkeypatch)
    names = taken_up(monkeypatch)
    monkeypatch.setattr(writer.Writer, "append", die)  # nothing is coded again
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    assert len(names) == 62
    assert not stage.exists()
    assert jentropy.verify(tmp_path / "dst", against=source).compared


def test_a_source_that_was_replaced_is_noticed(tmp_path, source, monkeypatch):
    stopped(source, tmp_path / "dst", monkeypatch)
    file = source / "model.safetensors"
    told, data = file.stat(), bytearray(file.read_bytes())
    data[-25 * TENSOR - 1] ^= 1  # in the 35th tensor
    file.write_bytes(data)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert file.stat().st_mtime_ns == told.st_mtime_ns
    names = taken_up(monkeypatch)
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    assert names[-1] == "t33"
    assert jentropy.verify(tmp_path / "dst", against=source).compared
    jentropy.compress_checkpoint(source, tmp_path / "again")
    assert alike(tmp_path / "dst", tmp_path / "again")


def test_a_journal_is_believed_as_far_as_it_is_sound(tmp_path, source, monkeypatch):
    jentropy.compress_checkpoint(source, tmp_path / "whole")
    for name, harm in JOURNALS.items():
        stage = stopped(source, tmp_path / "dst", monkeypatch)
        harm(stage)
        with monkeypatch.context() as patch:
            names = taken_up(patch)
            jentropy.compress_checkpoint(source, tmp_path / "dst")
        assert len(names) == EXPECTED[name], name
        assert alike(tmp_path / "dst", tmp_path / "whole"), name
        shutil.rmtree(tmp_path / "dst")


def _edit(stage: Path, change) -> None:
    file = stage / "journal.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(change(lines)))


def _flip(stage: Path) -> None:
    file = stage / "out/state/bundles.00003/c/0"
    data = bytearray(file.read_bytes())
    data[TENSOR + 1] ^= 1
    file.write_bytes(data)


JOURNALS = {
    "cut off": lambda stage: _edit(stage, lambda lines: [*lines[:4], lines[4][:-9]]),
    "a digit of a head": lambda stage: _edit(
        stage,
        lambda lines: [*lines[:3], lines[3].replace('"shape": [1', '"shape": [2'), *lines[4:]],
    ),
    "other types": lambda stage: _edit(
        stage, lambda lines: [*lines[:3], writer._hashed('[{"name": 3}]'), *lines[4:]]
    ),
    "another release": lambda stage: _edit(stage, lambda lines: [lines[0][::-1], *lines[1:]]),
    "none": lambda stage: (stage / "journal.jsonl").unlink(),
    "binary": lambda stage: (stage / "journal.jsonl").write_bytes(b"\xff\0" * 99),
    "a bundle lost": lambda stage: shutil.rmtree(stage / "out/state/bundles.00002"),
    "a bundle flipped": _flip,
    "a bundle not ended": lambda stage: os.truncate(
        stage / "out/state/bundles.00004/c/0", 3 * TENSOR
    ),
    "strangers": lambda stage: (stage / "out" / "evil").write_text("x"),
}
# Three tensors are a bundle; two other entries lie before them. The first line has none.
EXPECTED = {
    "cut off": 8,
    "a digit of a head": 5,
    "other types": 5,
    "another release": 0,
    "none": 0,
    "binary": 0,
    "a bundle lost": 8,
    "a bundle flipped": 12,
    "a bundle not ended": 62,
    "strangers": 62,
}


def test_the_destination_may_appear_and_go_meanwhile(tmp_path, source, monkeypatch):
    begin = writer.Writer.begin

    def appears(self, entries=()):
        begin(self, entries)
        (tmp_path / "dst").mkdir()

    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "begin", appears)
        with pytest.raises(DestinationError, match="exists") as raised:
            jentropy.compress_checkpoint(source, tmp_path / "dst")
    assert "goes on from there" in raised.value.__notes__[0]
    (tmp_path / "dst").rmdir()
    names = taken_up(monkeypatch)
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    assert len(names) == 62


def test_a_source_that_vanishes_leaves_what_is_done(tmp_path, source, monkeypatch):
    write = compressing.write

    def vanishing(*arguments):
        entries = write(*arguments)
        (source / "config.json").rename(tmp_path / "config.json")
        return entries

    with monkeypatch.context() as patch:
        patch.setattr(compressing, "write", vanishing)
        with pytest.raises(InputError, match="changed while"):
            jentropy.compress_checkpoint(source, tmp_path / "dst")
    (tmp_path / "config.json").rename(source / "config.json")
    names = taken_up(monkeypatch)
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    assert len(names) > 50


@pytest.mark.parametrize("command", ["compress", "decompress", "salvage"])
def test_what_is_left_behind_the_rename_is_cleaned(command, tmp_path, source, monkeypatch):
    dst, rmtree = tmp_path / "dst", shutil.rmtree
    if command != "compress":
        jentropy.compress_checkpoint(source, tmp_path / "packed")
        source = tmp_path / "packed"
    run = {
        "compress": jentropy.compress_checkpoint,
        "decompress": jentropy.decompress_checkpoint,
        "salvage": jentropy.salvage,
    }[command]

    def die_at_the_stage(path, **options):
        if Path(path).parent == tmp_path:
            raise SystemExit
        rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(staging.shutil, "rmtree", die_at_the_stage)
        with pytest.raises(SystemExit):
            run(source, dst)
    assert dst.exists()
    assert stages(tmp_path) == [f".dst.jentropy-{command}"]
    (tmp_path / f".dst.jentropy-{command}" / "lock").unlink()  # as if killed in its midst
    before = sorted(dst.rglob("*"))
    with pytest.raises(DestinationError, match="exists"):
        run(source, dst)
    assert stages(tmp_path) == []
    assert sorted(dst.rglob("*")) == before


def test_stages_of_what_needs_them_no_more_are_removed(tmp_path, source):
    """Of a repair and an export whose work was done, of processes of another number."""
    left = [tmp_path / f".dst.jentropy-{name}" for name in ("compress-3-of-4", "repair", "export")]
    for stage in left:
        stage.mkdir(0o700)
        (stage / "file").touch()
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    assert [stage.exists() for stage in left] == [False, True, True]
    assert jentropy.repair(tmp_path / "dst") == ()
    with pytest.raises(DestinationError, match="exists"):
        exporting.expect_place(tmp_path / "dst", "gptq", overwrite=False)
    assert stages(tmp_path) == []


def test_a_replacement_that_was_killed_gives_the_old_one_back(tmp_path, source, monkeypatch):
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    before = (tmp_path / "dst" / "_CHECKPOINT_METADATA").read_bytes()
    rename = os.rename

    def killed(a, b):
        if Path(b) == tmp_path / "dst":
            raise SystemExit
        rename(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(SystemExit):
            jentropy.compress_checkpoint(source, tmp_path / "dst", overwrite=True)
    assert not (tmp_path / "dst").exists()
    with pytest.raises(DestinationError, match="exists"):
        jentropy.compress_checkpoint(source, tmp_path / "dst")
    assert (tmp_path / "dst" / "_CHECKPOINT_METADATA").read_bytes() == before
    names = taken_up(monkeypatch)
    jentropy.compress_checkpoint(source, tmp_path / "dst", overwrite=True)
    assert len(names) == 62
    assert (tmp_path / "dst" / "_CHECKPOINT_METADATA").read_bytes() != before
    assert stages(tmp_path) == []


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_free_space_is_looked_at_before(command, tmp_path, source, monkeypatch):
    if command == "decompress":
        jentropy.compress_checkpoint(source, tmp_path / "packed")
    free = 400_000  # of 600,000 that noise takes
    usage = type(shutil.disk_usage(tmp_path))(1 << 30, 1 << 30, free)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    given = {"compress": source, "decompress": tmp_path / "packed"}[command]
    with pytest.raises(DestinationError, match=r"free space: expected \d+ bytes .*found 400000"):
        getattr(jentropy, f"{command}_checkpoint")(given, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_compressible_arrays_need_less_space(tmp_path):
    zeros = [np.zeros((300, 300), np.float32), np.ones(70, np.int8)]
    mapped = [
        items.StoredArray(name="w", shape=a.shape, dtype=a.dtype, file=tmp_path, read=lambda a=a: a)
        for a in zeros
    ]
    assert items.space.least_bytes(mapped) == 0


def test_decompressing_goes_on_in_the_middle_of_a_file(tmp_path, source, monkeypatch):
    jentropy.compress_checkpoint(source, tmp_path / "packed")
    with monkeypatch.context() as patch:
        patch.setattr(decompressing, "put_in_place", die)
        with pytest.raises(SystemExit):
            jentropy.decompress_checkpoint(tmp_path / "packed", tmp_path / "out")
    made = tmp_path / ".out.jentropy-decompress" / "out"
    file = made / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 20 * TENSOR - 5)
    (made / "strange").write_text("x")
    (made / "config.json").write_text("[]")
    read = []
    payload = store.Store.payload

    def counting(self, *place):
        read.append(place)
        return payload(self, *place)

    monkeypatch.setattr(store.Store, "payload", counting)
    jentropy.decompress_checkpoint(tmp_path / "packed", tmp_path / "out")
    assert len(read) == 22  # 21 tensors and the config
    assert alike(tmp_path / "out", source)
    assert stages(tmp_path) == []


def test_rows_of_fields_are_taken_up_whole_or_not_at_all(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="extra gguf is not installed")
    source = tmp_path / "source"
    source.mkdir()
    out = gguf.GGUFWriter(source / "model.gguf", "llama")
    rng = np.random.default_rng(0)
    for n in range(2):
        blocks = rng.integers(0, 256, (3000, 2 * 34), np.uint8)
        out.add_tensor(f"w{n}", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    monkeypatch.setattr("jentropy.containers.tensor.CHUNK_WEIGHTS", 5000)
    jentropy.compress_checkpoint(source, tmp_path / "packed")
    assert jentropy.verify(tmp_path / "packed", against=source).compared
    with monkeypatch.context() as patch:
        patch.setattr(decompressing, "put_in_place", die)
        with pytest.raises(SystemExit):
            jentropy.decompress_checkpoint(tmp_path / "packed", tmp_path / "out")
    file = tmp_path / ".out.jentropy-decompress" / "out" / "model.gguf"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1  # in the second
    file.write_bytes(data)
    names = []
    payload = store.Store.payload

    def counting(self, *place):
        names.append(place)
        return payload(self, *place)

    monkeypatch.setattr(store.Store, "payload", counting)
    jentropy.decompress_checkpoint(tmp_path / "packed", tmp_path / "out")
    assert alike(tmp_path / "out", source)
    index = store.Store(tmp_path / "packed").index
    assert len(names) == sum(len(e.places) for e in index.tensors if e.name.startswith("w1"))


def test_files_are_not_written_through_links(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic link"):
        durable.write(tmp_path / "link", b"x")
    stage = tmp_path / ".dst.jentropy-compress"
    (tmp_path / "elsewhere").mkdir()
    stage.symlink_to("elsewhere")
    with pytest.raises(DestinationError, match="expected a folder of this user"):
        jentropy.save(tmp_path / "dst", np.ones(3))
    assert (tmp_path / "victim").read_text() == "mine"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_stage_is_nobody_elses(tmp_path, source, monkeypatch):
    stage = stopped(source, tmp_path / "dst", monkeypatch)
    assert stage.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(DestinationError, match="another's"):
        jentropy.compress_checkpoint(source, tmp_path / "dst")


def test_sources_of_a_single_file_are_taken_up_too(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BUNDLE_BYTES", 1)
    tensors = {"a": ("U8", [500]), "b": ("U8", [0]), "c": ("U8", [3])}
    write_safetensors(tmp_path / "m.safetensors", tensors, lambda n, size: [bytes([n]) * size])
    stopped(tmp_path / "m.safetensors", tmp_path / "dst", monkeypatch)
    names = taken_up(monkeypatch)
    jentropy.compress_checkpoint(tmp_path / "m.safetensors", tmp_path / "dst")
    assert names == ["m.safetensors header", "a", "b", "c"]
    assert jentropy.verify(tmp_path / "dst", against=tmp_path / "m.safetensors").compared


def test_saving_a_tree_is_taken_up_as_far_as_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BUNDLE_BYTES", 1)
    rng = np.random.default_rng(0)
    tree = {name: rng.integers(0, 256, TENSOR, np.uint8) for name in "abcd"}
    tree["e"] = jentropy.compress(rng.integers(0, 256, TENSOR, np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "put_in_place", die)
        with pytest.raises(SystemExit):
            jentropy.save(tmp_path / "t", tree)
    names = taken_up(monkeypatch)
    jentropy.save(tmp_path / "t", tree)
    assert names == ["a", "b", "c", "d", "e"]
    with monkeypatch.context() as patch:
        patch.setattr(writer, "put_in_place", die)
        with pytest.raises(SystemExit):
            jentropy.save(tmp_path / "u", tree)
    tree["c"] = tree["c"] + np.uint8(1)
    names.clear()
    jentropy.save(tmp_path / "u", tree)
    assert names == ["a", "b"]
    found = jentropy.decompress(jentropy.load(tmp_path / "u"))
    assert all(np.array_equal(found[name], tree[name]) for name in "abcd")


def test_a_pytree_is_written_once(tmp_path, monkeypatch):
    """Arrays that were written before stay; one that is damaged meanwhile is written again."""
    from jentropy.checkpoints import array_store, restoring, tree_writing

    monkeypatch.setattr(tree_writing, "GIVEN_BYTES", 4000)  # one of the arrays
    monkeypatch.setattr(array_store, "TRANSACTION_BYTES", 1)
    tree = {f"w{n}": np.arange(n, 1000 + n, dtype=np.int32) for n in range(5)} | {"rate": 0.5}
    other = {**tree, "rate": 0.25}
    for name, content in {"packed": tree, "other": other}.items():
        jentropy.save(tmp_path / name, content)
    out, stage = tmp_path / "out", tmp_path / ".out.jentropy-decompress"
    with monkeypatch.context() as patch:
        patch.setattr(decompressing, "put_in_place", die)
        with pytest.raises(SystemExit):
            jentropy.decompress_checkpoint(tmp_path / "packed", out)
    (found,), _ = arrays_of(stage / "out" / "state", "w3/")
    values = found.array.read()
    values[7] ^= 1
    written = [("w3/", found.metadata, values)]
    array_store.write_store(stage / "out" / "state", written, ocdbt=True)
    decoded, plain = [], restoring.read_entries

    def counted(checkpoint, entries, *rest, **more):
        entries = list(entries)
        decoded.extend(entry.name for entry in entries)
        return plain(checkpoint, entries, *rest, **more)

    monkeypatch.setattr(restoring, "read_entries", counted)
    done = []
    jentropy.decompress_checkpoint(tmp_path / "packed", out, done.append)
    assert decoded == ["w3"]
    assert sum(done) == 5 * 4000
    assert stages(tmp_path) == []
    expect_orbax_has(out, tree)
    with monkeypatch.context() as patch:
        patch.setattr(decompressing, "put_in_place", die)
        with pytest.raises(SystemExit):
            jentropy.decompress_checkpoint(tmp_path / "packed", tmp_path / "again")
    jentropy.decompress_checkpoint(tmp_path / "other", tmp_path / "again")
    expect_orbax_has(tmp_path / "again", other)


def arrays_of(folder, *prefixes):
    from jentropy.checkpoints import array_store

    arrays, others = array_store.read_store(folder)
    return [array for array in arrays if array.prefix in prefixes], others


def expect_orbax_has(folder, tree):
    from orbax.checkpoint import v1

    back = v1.load(folder)
    assert back.keys() == tree.keys()
    assert all(np.array_equal(back[name], tree[name]) for name in tree)
