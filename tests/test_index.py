"""The index of a compressed checkpoint: read, written and refused by one schema."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from jentropy.checkpoints import index as index_lib
from jentropy.checkpoints.entries import PartEntry, WeightEntry
from jentropy.checkpoints.store import Store
from jentropy.errors import CorruptError, UnsupportedError
from jentropy.formats import FORMATS, MXFP4, plain_format

from .conftest import HERE

GOLDEN = HERE / "golden" / "valid"
FILE = Path("state/index")


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir()))
def test_what_is_read_is_written_to_the_same_text(name):
    text = zlib.decompress(Store(GOLDEN / name).array("index").tobytes())
    again = index_lib.to_bytes(index_lib.from_json(text, FILE))
    assert zlib.decompress(again) == text


@pytest.fixture
def recognised():
    """An index that tells of its weights."""
    index = Store(GOLDEN / "tree").index
    formats = (MXFP4, plain_format(np.dtype(np.int16)), *FORMATS.values())
    parts = {
        "code": PartEntry(array=0, unpack="packed", arguments={"axis": -1, "count": 32}),
        "scale": PartEntry(array=1, unpack="whole"),
    }
    weight = WeightEntry(
        name="w", dialect="gpt_oss", version=1, format=0, shape=(2, 32), parts=parts
    )
    return dataclasses.replace(index, formats=formats, weights=(weight,))


def test_weights_and_formats_come_back(recognised):
    again = index_lib.from_bytes(index_lib.to_bytes(recognised), FILE)
    assert again == recognised


HOSTILE = {
    "format": ("format", 99, CorruptError, "w format: expected a number below"),
    "version": ("version", "1", CorruptError, r"weights\[0\]\.version"),
    "dialect": ("dialect", None, CorruptError, r"weights\[0\]\.dialect"),
    "shape": ("shape", [2**62], CorruptError, r"weights\[0\]\.shape\[0\]"),
    "array": ("parts.code.array", 99, CorruptError, "w parts: expected a number below"),
    "array true": ("parts.code.array", True, CorruptError, r"parts\['code'\]\.array"),
    "array a text": ("parts.code.array", "x", CorruptError, r"parts\['code'\]\.array"),
    "no code": ("parts", {}, CorruptError, "parts with a code"),
    "settled": ("settled", [99], CorruptError, "w parts: expected a number below"),
    "unpack": ("parts.code.unpack", 3, CorruptError, r"parts\['code'\]\.unpack"),
    "part": ("parts.code", [], CorruptError, r"parts\['code'\]"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused(name, recognised):
    path, value, error, message = HOSTILE[name]
    content = json.loads(zlib.decompress(index_lib.to_bytes(recognised)))
    node = content["weights"][0]
    *parents, last = path.split(".")
    for key in parents:
        node = node[key]
    node[last] = value
    with pytest.raises(error, match=message) as raised:
        index_lib.from_json(json.dumps(content).encode(), FILE)
    assert str(FILE) in str(raised.value)


def test_two_weights_of_one_array_and_unknown_formats_are_refused(recognised):
    content = json.loads(zlib.decompress(index_lib.to_bytes(recognised)))
    content["weights"] *= 2
    with pytest.raises(CorruptError, match="once, found 'array 0'"):
        index_lib.from_json(json.dumps(content).encode(), FILE)
    content["formats"][0]["element"] = "FP5"
    with pytest.raises(UnsupportedError, match="FP5"):
        index_lib.from_json(json.dumps(content).encode(), FILE)


def test_an_error_names_place_and_tensor():
    content = json.loads(zlib.decompress(Store(GOLDEN / "tree").array("index").tobytes()))
    content["tensors"][3]["chunks"][0][1] = -1
    place = r"state/index: tensor '\w+': index\.tensors\[3\].chunks\[0\]\[1\]: expected .* found -1"
    with pytest.raises(CorruptError, match=place):
        index_lib.from_json(json.dumps(content).encode(), FILE)
