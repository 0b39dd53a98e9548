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
NOT_ASKED = "ct_nvfp4"  # of the tool itself; see the test that compares its files


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
    assert {*tools, NOT_ASKED} == quantised.keys()
    for name, (tool, tensors) in quantised.items():
        path = folder / name
        checkpoint = jentropy.open_checkpoint(path / "model.gguf" if tool == "gguf" else path)
        assert not checkpoint.notes
        assert set(checkpoint.names()) >= set(tensors)
        for key, tensor in tensors.items():
            if isinstance(tensor, QuantizedTensor):
                read = checkpoint.tensor(key).dequantize()
                np.testing.assert_array_equal(read, tensor.dequantize(np.float32))
                if name == NOT_ASKED:
                    continue
                # Tools round products of codes and scales to a dtype: that of the scales, mostly.
                rounded = {exported.hashed(read.astype(dtype)) for dtype in DTYPES}
                assert tools[name][key] in rounded, (name, key)
            else:
                np.testing.assert_array_equal(checkpoint.tensor(key).values(), tensor)


def test_nvfp4_lies_as_the_tool_itself_wrote_it(folder, fixtures):
    """Its arrays and what its config says of them, beside a checkpoint that the tool wrote."""
    own, tools = folder / NOT_ASKED, fixtures / "quantised" / "ct_nvfp4a16"
    kinds, layer = [], "model.layers.0.mlp.down_proj."
    for path in (own, tools):
        config = json.loads((path / "config.json").read_text())
        [file] = path.glob("*.safetensors")
        length = int.from_bytes(file.read_bytes()[:8], "little")
        arrays = {
            name.removeprefix(layer): (told["dtype"], tuple(told["shape"]))
            for name, told in json.loads(file.read_bytes()[8 : 8 + length]).items()
            if name.startswith(layer)
        }
        kinds.append((arrays, config["quantization_config"]))
    (ours, declared), (theirs, told) = kinds
    rows, columns = exported.SHAPES["mlp.down_proj"]
    shapes = {"weight_packed": (rows, columns // 2), "weight_scale": (rows, columns // 16)}
    assert {name: dtype for name, (dtype, _) in ours.items()} == {
        name: dtype for name, (dtype, _) in theirs.items()
    }
    assert all(ours[name][1] == shape for name, shape in shapes.items())
    assert ours["weight_global_scale"][1] == theirs["weight_global_scale"][1]
    assert declared["format"] == told["format"]
    weights, known = (d["config_groups"]["group_0"]["weights"] for d in (declared, told))
    assert weights.items() <= known.items()


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
