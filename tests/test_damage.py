"""Damaged compressed checkpoints: all of it is found, what is sound comes back, or all again."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

import jentropy
from jentropy.checkpoints import salvaging, store, zarr_files
from jentropy.cli import main as cli
from jentropy.errors import ChecksumError, DestinationError, InputError, UnsupportedError
from jentropy.formats import MXFP4, QuantizedTensor

from .conftest import read_tree
from .soak import damages


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return damages.made(tmp_path_factory.mktemp("damage"))


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def chunk(folder: Path, number: int) -> Path:
    return folder / f"state/bundles.{number:05d}/c/0"


def test_random_damage_is_found(tmp_path):
    found, kinds = damages.trial(tmp_path / "d", 60, seed=1)
    assert found == 60
    assert len(kinds) == len(damages.HARMS)


def test_all_damage_is_listed_and_repaired(copy, whole, capsys):
    index = store.Store(copy).index
    assert len(index.bundles) >= 3
    placed = {bundle: entry.name for entry in index.tensors for bundle, _ in entry.places}
    (first,) = (entry for entry in index.tensors if entry.name == "a")
    assert first.places[0][0] == 0
    flip(chunk(copy, 0), first.places[0][1] + 5)
    chunk(copy, 1).write_bytes(chunk(copy, 1).read_bytes()[:9])
    flip(chunk(copy, 2), -1)  # of zarr's index
    flip(copy / "state/copy/c/0", 7)
    (copy / "commit_success.txt").write_text("x")
    (copy / "state/stranger").write_text("x")
    (copy / "state/_METADATA").unlink()
    with pytest.raises(InputError) as raised:
        jentropy.verify(copy)
    told = [raised.value, *raised.value.others]
    files = [Path(error.file).relative_to(copy).as_posix() for error in told]
    assert sorted(set(files)) == [
        "commit_success.txt",
        "state/_METADATA",
        "state/bundles.00000",
        "state/bundles.00001",
        "state/bundles.00002/c/0",
        "state/copy/c/0",
        "state/stranger",
    ]
    tensors = {error.tensor for error in told if error.tensor}
    assert {"a", placed[1]} <= tensors
    assert cli.main(["verify", str(copy), "-q"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(told) + 1
    assert lines[-1] == f"jentropy: {copy}: {len(told)} damages"
    (copy / "state/stranger").unlink()
    source = whole.parent / "source"
    assert cli.main(["salvage", str(copy), "--repair-from", str(source)]) == 0
    assert f"{len(told) - 1} damages repaired" in capsys.readouterr().out
    jentropy.verify(copy, against=source)
    for name, data in read_tree(whole).items():
        if name not in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            assert (copy / name).read_bytes() == data
    assert not list(copy.parent.glob(".*"))


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/index/zarr.json", "state/index"])
def test_no_file_but_bundles_is_needed_to_repair(copy, name):
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError):
        jentropy.verify(copy)
    assert jentropy.repair(copy)
    jentropy.verify(copy)
    assert jentropy.repair(copy) == ()


def test_a_copy_repairs_too_and_what_it_lacks_is_told(copy, whole):
    for number in (0, 2):
        flip(chunk(copy, number), 3)
    with pytest.raises(ChecksumError, match="and 1 more"):
        jentropy.repair(copy)
    other = copy.parent / "other"
    shutil.copytree(whole, other)
    shutil.rmtree(other / "state/bundles.00002")
    with pytest.raises(InputError, match=r"bundles.00002") as told:
        jentropy.repair(copy, other)
    assert told.value.__notes__ == [f"{other} has not what was there"]
    assert jentropy.repair(copy, whole)
    jentropy.verify(copy)


def test_what_is_sound_comes_back(copy, whole, caplog, tmp_path):
    source = whole.parent / "source"
    expected = {
        name: tensor.codes["code"].tobytes()
        for name, tensor in ((n, jentropy.open_checkpoint(source).tensor(n)) for n in "abc")
    }
    index = store.Store(copy).index
    (lost,) = (entry for entry in index.tensors if entry.name == "b")
    flip(chunk(copy, lost.places[0][0]), lost.places[0][1] + 20)
    config = index.blobs[next(f.blob for f in index.files if f.path == "config.json")]
    flip(chunk(copy, config.places[0][0]), config.places[0][1] + 1)
    with caplog.at_level(logging.WARNING):
        tree = jentropy.load(copy, damaged="leave_out")
    assert tree["b"] is None
    assert "'b'" in caplog.text
    for name in "ac":
        assert jentropy.decompress(tree[name]).tobytes() == expected[name]
    assert cli.main(["salvage", str(copy), str(tmp_path / "out"), "-q"]) == 1
    out = jentropy.open_checkpoint(tmp_path / "out" / "model.safetensors")
    assert sorted(out.names()) == ["a", "c", "d"]
    for name in "ac":
        assert out.tensor(name).codes["code"].tobytes() == expected[name]
    assert (tmp_path / "out" / "config.json.damaged").read_bytes() == b"\0\0"
    header = index.blobs[next(f.blob for f in index.files if f.parts)]
    flip(chunk(copy, header.places[0][0]), header.places[0][1] + 5)
    found = jentropy.salvage(copy, tmp_path / "again")
    assert len(found.damage) == 3
    again = jentropy.open_checkpoint(tmp_path / "again" / "model.safetensors")
    assert again.tensor("a").shape == out.tensor("a").shape
    assert again.tensor("a").codes["code"].tobytes() == expected["a"]


def test_trees_without_their_damaged_leaves(tmp_path):
    from orbax.checkpoint import v1 as ocp

    codes = {"code": np.ones((2, 64), np.uint8), "scale": np.full((2, 2), 9, np.uint8)}
    weight = QuantizedTensor(number_format=MXFP4, codes=codes)
    tree = {"a": np.arange(3000), "b": [np.ones(5), 3], "w": weight}
    jentropy.save(tmp_path / "t", tree)
    for entry in store.Store(tmp_path / "t").index.tensors:
        if entry.name in ("a", "w.codes.code"):
            flip(chunk(tmp_path / "t", 0), entry.places[0][1] + 1)
    found = jentropy.salvage(tmp_path / "t", tmp_path / "out")
    assert [error.tensor for error in found.damage] == ["a", "w.codes.code"]
    loaded = ocp.load(tmp_path / "out")
    assert loaded["a"] is None
    assert loaded["b"][0].tolist() == [1.0] * 5
    assert loaded["w"]["code"] is None
    assert loaded["w"]["scale"].tolist() == codes["scale"].tolist()
    assert jentropy.load(tmp_path / "t", damaged="leave_out")["w"]["code"] is None
    jentropy.save(tmp_path / "empty", {"a": np.zeros((0, 3))})
    with pytest.raises(UnsupportedError, match="'a': Orbax stores no empty array"):
        jentropy.salvage(tmp_path / "empty", tmp_path / "nothing")
    assert not [path for path in tmp_path.iterdir() if "nothing" in path.name]
    with pytest.raises(InputError, match="raise or leave_out"):
        jentropy.load(tmp_path / "t", damaged="x")


def test_version_1_is_checked_and_repaired_as_far_as_it_tells(tmp_path):
    golden = Path(__file__).parent / "golden" / "valid" / "gptq_v1_asym_act"
    shutil.copytree(golden, tmp_path / "one")
    jentropy.verify(tmp_path / "one")
    flip(chunk(tmp_path / "one", 0), -zarr_files.INDEX_BYTES)
    with pytest.raises(InputError, match="zarr's index"):
        jentropy.verify(tmp_path / "one")
    jentropy.repair(tmp_path / "one")
    jentropy.verify(tmp_path / "one")
    assert store.Store(tmp_path / "one").index.version == 1
    (tmp_path / "one" / "stranger").write_text("x")
    with pytest.raises(InputError, match="stranger"):
        jentropy.verify(tmp_path / "one")


def test_what_is_sound_of_what_orbax_wrote_is_orbax_s(tmp_path):
    from orbax.checkpoint import v1 as ocp

    rng = np.random.default_rng(0)
    tree = {name: rng.integers(0, 256, 500, np.uint8) for name in "abc"}
    ocp.save(tmp_path / "src", tree)
    jentropy.compress_checkpoint(tmp_path / "src", tmp_path / "t")
    (entry,) = (e for e in store.Store(tmp_path / "t").index.tensors if e.name == "b")
    flip(chunk(tmp_path / "t", entry.places[0][0]), entry.places[0][1] + 9)
    found = jentropy.salvage(tmp_path / "t", tmp_path / "out")
    assert [error.tensor for error in found.damage] == ["b"]
    assert [Path(name).name for name in found.partial] == ["_METADATA"]
    loaded = ocp.load(tmp_path / "out")
    assert {name: values.tobytes() for name, values in loaded.items()} == {
        name: tree[name].tobytes() for name in "ac"
    }
    assert jentropy.open_checkpoint(tmp_path / "out").names() == ["a", "c"]


def test_salvage_refuses_a_destination_that_is_there_before_it_reads(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(salvaging, "damage_of", None)
    with pytest.raises(DestinationError, match="exists"):
        jentropy.salvage(whole, tmp_path)
