"""Compressed checkpoints in vLLM: the loader of its load format `jentropy`.

vLLM and PyTorch are no dependencies: where they are missing, a stand-in has the four names that the
loader uses, with vLLM's signatures.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import jentropy
from jentropy.checkpoints import serving
from jentropy.checkpoints.serving import served_checkpoint, serving_directory, stored_arrays
from jentropy.errors import DestinationError, InputError

from .conftest import read_tree

SOURCES = ("llama_bf16", "qwen3_bf16_sharded")


@pytest.fixture(scope="module")
def packed(fixtures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for name in SOURCES:
        jentropy.compress_checkpoint(fixtures / name, folder / name)
    return {name: folder / name for name in SOURCES}


class BaseModelLoader:
    def __init__(self, load_config):
        self.load_config = load_config


@pytest.fixture
def loader_of(monkeypatch):
    """What vLLM makes of a load config: (extra config) -> loader."""
    try:
        from vllm.config.load import LoadConfig
        from vllm.model_executor.model_loader import get_model_loader
        from vllm.plugins import load_general_plugins

        load_general_plugins()  # finds the entry point
        return lambda **extra: get_model_loader(
            LoadConfig(load_format=serving.LOAD_FORMAT, model_loader_extra_config=extra)
        )
    except ImportError:
        loaders: dict = {}
        vllm = types.ModuleType("vllm.model_executor.model_loader")
        vllm.BaseModelLoader = BaseModelLoader
        vllm.register_model_loader = lambda name: lambda cls: loaders.setdefault(name, cls)
        for name in ("vllm", "vllm.model_executor"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, vllm.__name__, vllm)
        monkeypatch.setattr(serving, "as_torch", lambda array: array)
        serving.register()
        return lambda **extra: loaders[serving.LOAD_FORMAT](
            types.SimpleNamespace(model_loader_extra_config=extra)
        )


class Model:
    """As vLLM's: takes weights by name, says which, and knows its parameters."""

    def __init__(self, names):
        self.names, self.taken = set(names), {}

    def named_parameters(self):
        return [(name, None) for name in self.names]

    def load_weights(self, weights):
        assert iter(weights) is weights  # not read before they are asked for
        self.taken = {name: bits(weight) for name, weight in weights}
        return set(self.taken) & self.names


def bits(weight) -> bytes:
    if not isinstance(weight, np.ndarray):  # a tensor of PyTorch
        import torch

        weight = weight.contiguous().view(torch.uint8).numpy()
    return weight.tobytes()


def config_of(path: Path, quantization=None):
    return types.SimpleNamespace(model=str(path), quantization=quantization)


@pytest.mark.parametrize("name", SOURCES)
def test_a_server_gets_the_arrays_of_the_files(name, fixtures, packed, tmp_path, loader_of):
    source = fixtures / name
    serving_directory(packed[name], tmp_path / "served")
    files = read_tree(tmp_path / "served")
    assert json.loads(files.pop(serving.POINTER)) == {"checkpoint": str(packed[name].resolve())}
    beside = {k: v for k, v in read_tree(source).items() if ".safetensors" not in k}
    assert files == beside
    right = {}
    for file in source.glob("*.safetensors"):
        right |= {k: v.tobytes() for k, v in load_file(file).items()}
    for loader, directory in (
        (loader_of(), tmp_path / "served"),
        (loader_of(checkpoint=str(packed[name])), source),
    ):
        model = Model(right)
        loader.download_model(config_of(directory))
        loader.load_weights(model, config_of(directory))
        assert model.taken == right


def test_what_a_model_lacks_is_named(packed, loader_of):
    wanting = Model({"model.norm.weight", "model.other.weight"})
    config = config_of(packed["llama_bf16"])
    with pytest.raises(InputError, match=r"not in the checkpoint: \['model.other.weight'\]"):
        loader_of().load_weights(wanting, config)
    loader_of().load_weights(
        wanting, config_of(packed["llama_bf16"], "fp8")
    )  # has names of its own
    for directory in ("nowhere", Path(__file__).parent / "fixtures" / "llama_bf16"):
        with pytest.raises(InputError):
            loader_of().download_model(config_of(directory))


def test_quantised_weights_are_served_as_they_are_stored(tmp_path):
    arrays = {
        "w": np.arange(64, dtype=np.uint8).reshape(8, 8).view(ml_dtypes.float8_e4m3fn),
        "w_scale": np.ones((1, 1), np.float32),
        "z": np.arange(4),
    }
    jentropy.save(tmp_path / "packed", arrays)
    served = dict(stored_arrays(tmp_path / "packed"))
    assert served.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (served[name].dtype, served[name].tobytes()) == (array.dtype, array.tobytes())


def test_a_directory_that_is_served(packed, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(DestinationError, match="cannot write"):
        serving_directory(packed["llama_bf16"], tmp_path / "there")
    jentropy.save(tmp_path / "tree", {"w": np.ones(3)})
    with pytest.raises(InputError, match=r"no config\.json"):
        serving_directory(tmp_path / "tree", tmp_path / "served")
    (tmp_path / "there" / serving.POINTER).write_text('{"checkpoint": "../tree"}')
    assert served_checkpoint(tmp_path / "there").resolve() == (tmp_path / "tree").resolve()
    (tmp_path / "there" / serving.POINTER).write_text("{}")
    with pytest.raises(InputError, match=r"jentropy\.json: checkpoint: expected a path"):
        served_checkpoint(tmp_path / "there")


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float32", "int8"])
def test_tensors_of_pytorch_have_the_same_bits(dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is no dependency")
    array = np.arange(256, dtype=np.uint8).view(dtype)
    array.flags.writeable = False
    tensor = serving.as_torch(array)
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert tensor.view(torch.uint8).numpy().tobytes() == array.tobytes()
