"""Directories for other tools: read back here, and by the tools themselves (`exported.py`)."""

from __future__ import annotations

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy import formats
from jentropy.checkpoints import exporting
from jentropy.errors import DestinationError, InputError, UnsupportedError
from jentropy.formats import FP16, QuantizedTensor, quantize

from . import exported

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported")
    exported.make(path)
    return path


@pytest.fixture(scope="module")
def quantised():
    return exported.quantised()


def test_they_are_read_back_to_the_same_numbers(folder, quantised, fixtures):
    tools = json.loads((fixtures / "exported.json").read_text())  # what these made of them
    assert tools.keys() == quantised.keys()
    for name, (tool, tensors) in quantised.items():
        path = folder / name
        checkpoint = jentropy.open_checkpoint(path / "model.gguf" if tool == "gguf" else path)
        assert not checkpoint.notes
        assert set(checkpoint.names()) >= set(tensors)
        for key, tensor in tensors.items():
            if isinstance(tensor, QuantizedTensor):
                read = checkpoint.tensor(key).dequantize()
                np.testing.assert_array_equal(read, tensor.dequantize(np.float32))
                # Tools round products of codes and scales to a dtype: that of the scales, mostly.
                rounded = {exported.hashed(read.astype(dtype)) for dtype in DTYPES}
                assert tools[name][key] in rounded, (name, key)
            else:
                np.testing.assert_array_equal(checkpoint.tensor(key).values(), tensor)


def of(number_format, weight):
    codes = {key: np.asarray(array) for key, array in quantize(weight, number_format).items()}
    return QuantizedTensor(number_format=number_format, codes=codes)


def test_what_a_tool_has_no_place_for(tmp_path):
    weight = np.random.default_rng(0).normal(size=(32, 64)).astype("f4")
    texts, path = {"config.json": "{}"}, tmp_path / "x"
    halves = formats.INT4_GROUP.with_parameter("scale", element=FP16, block=(32,))

    def refused(tensor, tool, error, match):
        with pytest.raises(error, match=match):
            exporting.export(path, {"a.weight": tensor}, tool, beside=texts)
        assert not path.exists()

    refused(of(formats.NVFP4, weight), "compressed-tensors", UnsupportedError, "NVFP4")
    refused(of(formats.ASYMMETRIC_INT4, weight), "gptq", UnsupportedError, "INT4")
    refused(of(halves, weight[:30]), "gptq", UnsupportedError, "multiples of 8")
    refused(of(formats.INT4_GROUP, weight), "gguf", UnsupportedError, "of 32")
    refused(of(halves, weight), "other", UnsupportedError, "gptq or gguf")
    refused(weight, "gptq", InputError, "nothing is quantised")
    wide = replace(of(formats.INT8_ROW, weight))
    wide.codes["scale"] = np.full((32, 1), 1e-9, ml_dtypes.bfloat16).view(np.uint16)
    refused(wide, "gptq", InputError, "float16")
    two = {"a.weight": of(halves, weight), "b.weight": of(formats.INT8_ROW, weight)}
    with pytest.raises(UnsupportedError, match="one"):
        exporting.export(path, two, "gptq", beside=texts)
    exporting.export(path, {"a.weight": of(halves, weight)}, "gptq", beside=texts)
    with pytest.raises(DestinationError):
        exporting.export(path, {"a.weight": of(halves, weight)}, "gptq", beside=texts)
    again = {"a.weight": of(halves, -weight)}
    exporting.export(path, again, "gptq", beside=texts, overwrite=True)
    read = jentropy.open_checkpoint(path).tensor("a.weight").dequantize()
    np.testing.assert_array_equal(read, again["a.weight"].dequantize(np.float32))
