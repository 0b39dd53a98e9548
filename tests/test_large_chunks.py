"""Chunks of zarr too large for memory are read by pieces and written as smaller ones."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy.checkpoints import array_store, decoding, large_chunks, mapping, smaller_chunks
from jentropy.checkpoints.store import Store
from jentropy.errors import CorruptError

SHAPE, PIECE = (3, 50, 70), 1 << 10
RNG = np.random.default_rng(0)
VALUES = (RNG.standard_normal(SHAPE) * 0.02).astype(ml_dtypes.bfloat16)
CHUNKS = (SHAPE, (3, 50, 32), (2, 20, 70), (4, 64, 128))  # edges are cut off, or reach beyond
LITTLE, ZSTD = ({"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"})


def second(chunk, compressor, separator=".", order="C"):
    """Metadata of zarr 2."""
    return {
        "zarr_format": 2,
        "shape": SHAPE,
        "chunks": chunk,
        "dtype": "bfloat16",
        "compressor": compressor,
        "dimension_separator": separator,
        "fill_value": None,
        "filters": None,
        "order": order,
    }


def third(chunk, codecs, *, sharded, encoding="default"):
    """Metadata of zarr 3."""
    shard = {
        "chunk_shape": chunk,
        "codecs": codecs,
        "index_codecs": [LITTLE, {"name": "crc32c"}],
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": SHAPE,
        "data_type": "bfloat16",
        "fill_value": 0.0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": encoding},
        "codecs": [{"name": "sharding_indexed", "configuration": shard}] if sharded else codecs,
    }


LAYOUTS = {
    "zarr 2, zstd": lambda chunk: second(chunk, {"id": "zstd", "level": 1}),
    "zarr 2, as it is": lambda chunk: second(chunk, None, "/"),
    "zarr 3, shards": lambda chunk: third(chunk, [LITTLE, ZSTD], sharded=True),
    "zarr 3": lambda chunk: third(chunk, [LITTLE], sharded=False, encoding="v2"),
}
OTHERS = {
    "another coder": second(SHAPE, {"id": "gzip", "level": 1}),
    "Fortran's order": second(SHAPE, None, order="F"),
    "big-endian": third(
        SHAPE, [{"name": "bytes", "configuration": {"endian": "big"}}], sharded=False
    ),
    "transposed": third(
        SHAPE, [{"name": "transpose", "configuration": {"order": [2, 1, 0]}}, LITTLE], sharded=False
    ),
}


@pytest.fixture
def pieces(monkeypatch) -> list[int]:
    """Bytes of every piece that is read."""
    for name, size in (("LARGE", 1), ("PIECE", PIECE), ("READ", 1 << 9)):
        monkeypatch.setattr(large_chunks, name, size)
    sizes, exactly = [], large_chunks._exactly
    monkeypatch.setattr(
        large_chunks, "_exactly", lambda *a, **k: (sizes.append(a[1]), exactly(*a, **k))[1]
    )
    return sizes


def written(folder, metadata, *, ocdbt):
    array_store.write_store(folder, [("w/", metadata, VALUES)], ocdbt=ocdbt)
    (found,), _ = array_store.read_store(folder, ["w/"])
    return found.array


@pytest.mark.parametrize("name", LAYOUTS)
def test_read_by_pieces(name, pieces, tmp_path):
    for number, (chunk, ocdbt) in enumerate(itertools.product(CHUNKS, (True, False))):
        del pieces[:]
        array = written(tmp_path / str(number), LAYOUTS[name](chunk), ocdbt=ocdbt)
        assert array.part is None
        assert array.read().tobytes() == VALUES.tobytes(), (chunk, ocdbt)
        assert max(pieces) <= PIECE
        assert sum(pieces) >= VALUES.nbytes


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("whole", [1 << 7, 1 << 11, 1 << 13])
def test_written_in_smaller_ones(name, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(smaller_chunks, "WHOLE", whole)
    monkeypatch.setattr(array_store, "TRANSACTION_BYTES", 3 * whole)
    metadata = LAYOUTS[name]((2, 40, 70))
    for ocdbt in (False, True):
        array_store.write_store(tmp_path / str(ocdbt), [("w/", metadata, VALUES)], ocdbt=ocdbt)
        (found,), _ = array_store.read_store(tmp_path / str(ocdbt), ["w/"])
        assert found.array.read().tobytes() == VALUES.tobytes()
        assert smaller_chunks.divided(found.metadata, VALUES.itemsize) == found.metadata
        assert whole / 4 < np.prod(found.array.together) * VALUES.itemsize <= whole


def test_shards_of_chunks_are_divided_between_them(tmp_path, monkeypatch):
    monkeypatch.setattr(smaller_chunks, "WHOLE", 1 << 12)
    metadata = third((3, 50, 70), [LITTLE, ZSTD], sharded=True)
    metadata["codecs"][0]["configuration"]["chunk_shape"] = (1, 10, 70)
    array_store.write_store(tmp_path, [("w/", metadata, VALUES)], ocdbt=False)
    (found,), _ = array_store.read_store(tmp_path, ["w/"])
    assert found.metadata["chunk_grid"]["configuration"]["chunk_shape"] == [1, 20, 70]
    assert found.array.together == (1, 10, 70)
    assert found.array.read().tobytes() == VALUES.tobytes()


@pytest.mark.parametrize("name", OTHERS)
def test_other_layouts_are_read_by_tensorstore(name, pieces, tmp_path):
    array = written(tmp_path / "t", OTHERS[name], ocdbt=False)
    assert array.read().tobytes() == VALUES.tobytes()
    assert not pieces


@pytest.mark.parametrize("name", LAYOUTS)
def test_damage_is_an_error(name, pieces, tmp_path):
    array = written(tmp_path / "t", LAYOUTS[name](SHAPE), ocdbt=False)
    (file,) = (p for p in (tmp_path / "t" / "w").rglob("*0") if p.is_file())
    good = file.read_bytes()
    for damaged in (good[:-30], good[:40], good + bytes(99), b""):
        file.write_bytes(damaged)
        with pytest.raises(CorruptError, match="w"):
            array.read()


def test_chunks_that_are_not_there_are_fill_values(pieces, tmp_path):
    array_store.write_store(
        tmp_path / "t", [("w/", LAYOUTS["zarr 3, shards"]((2, 50, 70)), VALUES)], ocdbt=False
    )
    (tmp_path / "t" / "w" / "c" / "0" / "0" / "0").unlink()
    for complete in (False, True):
        (found,), _ = array_store.read_store(tmp_path / "t", ["w/"], complete=complete)
        if complete:
            with pytest.raises(CorruptError):
                found.array.read()
        else:
            values = found.array.read()
            assert not values[:2].any()
            assert (values[2] == VALUES[2]).all()


@pytest.mark.parametrize("down", [False, True])
def test_large_arrays_are_decoded_into_files(down, tmp_path, monkeypatch):
    arrays = {"few": VALUES[0, 0], "many": VALUES}
    jentropy.save(tmp_path / "c", arrays)
    rooms, room = [], mapping.room
    monkeypatch.setattr(mapping, "IN_MEMORY", VALUES[0].nbytes)
    monkeypatch.setattr(mapping, "room", lambda size: (rooms.append(size), room(size))[1])
    store = Store(tmp_path / "c")
    entries = store.index.tensors
    found = decoding.read_entries(store, entries, down=down)
    for entry, array in zip(entries, found, strict=True):
        assert array.tobytes() == arrays[entry.name].tobytes()
    assert rooms == [VALUES.nbytes] * down
