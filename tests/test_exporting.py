"""Directories for other tools: read back here, and by the tools themselves (`exported.py`)."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import gguf
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
# A few of llama.cpp's names, by those of Hugging Face.
GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm.weight": "blk.0.attn_norm.weight",
    "post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
    "self_attn.q_norm.weight": "blk.0.attn_q_norm.weight",
    "self_attn.k_norm.weight": "blk.0.attn_k_norm.weight",
    "self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "self_attn.v_proj.weight": "blk.0.attn_v.weight",
    "self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
    "mlp.up_proj.weight": "blk.0.ffn_up.weight",
    "mlp.down_proj.weight": "blk.0.ffn_down.weight",
}
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
        for key, tensor in tensors.items():
            own = GGUF_NAMES[key.removeprefix(exported.LAYER)] if tool == "gguf" else key
            if isinstance(tensor, QuantizedTensor):
                read = checkpoint.tensor(own).dequantize()
                np.testing.assert_array_equal(read, tensor.dequantize(np.float32))
                if name == NOT_ASKED:
                    continue
                # Tools round products of codes and scales to a dtype: that of the scales, mostly.
                rounded = {exported.hashed(read.astype(dtype)) for dtype in DTYPES}
                assert tools[name][own] in rounded, (name, own)
            else:
                np.testing.assert_array_equal(checkpoint.tensor(own).values(), tensor)


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


def metadata(path):
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def test_gguf_says_what_llama_cpp_asks_for(folder):
    found = metadata(folder / "gguf_q8_0" / "model.gguf")
    own = {key.removeprefix("qwen3."): v for key, v in found.items() if key.startswith("qwen3.")}
    assert found["general.architecture"] == "qwen3"
    assert found["tokenizer.ggml.model"] == "none"  # none lay beside it
    assert own == {
        "vocab_size": 64,
        "context_length": 64,
        "embedding_length": 64,
        "block_count": 1,
        "feed_forward_length": 128,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.layer_norm_rms_epsilon": np.float32(1e-6),
        "rope.dimension_count": 32,
        "rope.freq_base": 10000.0,
    }


def test_gguf_has_the_vocabulary(tmp_path):
    weight, beside = np.zeros((2, 4), np.float32), jentropy.models.BUNDLED
    texts = {n: (beside / n).read_text() for n in ("config.json", "tokenizer.json")}
    exporting.export(tmp_path / "x", {"lm_head.weight": weight}, "gguf", beside=texts)
    found = metadata(tmp_path / "x" / "model.gguf")
    tokenizer = jentropy.models.load_tokenizer(beside)
    size = json.loads(texts["config.json"])["vocab_size"]
    assert len(found["tokenizer.ggml.tokens"]) == len(found["tokenizer.ggml.token_type"]) == size
    for text, kind in (("Ġimport", 1), ("<|endoftext|>", 3)):
        at = tokenizer.token_to_id(text)
        assert found["tokenizer.ggml.tokens"][at] == text
        assert found["tokenizer.ggml.token_type"][at] == kind
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.merges"][0] == "Ġ Ġ"
    assert not found["tokenizer.ggml.add_bos_token"]


def test_gguf_turns_the_heads_of_llama(tmp_path):
    """Of a head of 4 rows 0 and 2 turn together, as 1 and 3: there they lie side by side."""
    config = exported.CONFIG | {"model_type": "llama", "num_attention_heads": 2}
    name, rows = "model.layers.0.self_attn.q_proj.weight", np.arange(8, dtype="f4")
    weight = np.repeat(rows[:, None], 64, axis=1)
    codes = of(formats.INT8_ROW.with_parameter("scale", element=FP16, block=(32,)), weight)
    for tensor, same in ((weight, "f"), (codes, "q")):
        texts = {"config.json": json.dumps(config)}
        exporting.export(tmp_path / same, {name: tensor}, "gguf", beside=texts)
        read = jentropy.open_checkpoint(tmp_path / same / "model.gguf")
        [found] = read.names()
        assert found == "blk.0.attn_q.weight"
        order = read.tensor(found).dequantize()[:, 0]
        np.testing.assert_allclose(order, [0, 2, 1, 3, 4, 6, 5, 7], rtol=1e-2)


@pytest.mark.parametrize(
    "other",
    [
        {"model_type": "gemma2"},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        {"attention_bias": True},
        {"use_sliding_window": True, "sliding_window": 8},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_llama_cpp_would_run_otherwise_keeps_its_names(other, tmp_path):
    texts = {"config.json": json.dumps(exported.CONFIG | other)}
    name, weight = "model.norm.weight", np.ones(64, np.float32)
    exporting.export(tmp_path / "x", {name: weight}, "gguf", beside=texts)
    assert metadata(tmp_path / "x" / "model.gguf")["general.architecture"] == "jentropy"
    assert jentropy.open_checkpoint(tmp_path / "x" / "model.gguf").names() == [name]


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


def test_a_url_is_written_to_and_a_full_disk_is_an_error(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec", reason="extra remote is not installed")
    monkeypatch.setenv("JENTROPY_CACHE", str(tmp_path / "cache"))
    tensors = {"a.weight": of(formats.INT8_ROW, np.ones((2, 64), np.float32))}

    def export(path):
        exporting.export(path, tensors, "compressed-tensors", beside={"config.json": "{}"})

    export("memory://exported")
    names = {name.rpartition("/")[2] for name in fsspec.filesystem("memory").find("/exported")}
    assert names == {"config.json", "model.safetensors"}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(exporting, "_write_safetensors", full)
    with pytest.raises(DestinationError, match=r"x: cannot write: No space left"):
        export(tmp_path / "x")


@pytest.mark.parametrize(
    ("config", "vocabulary"),
    [({"vocab_size": 1 << 62}, {}), ({}, {"a": "b"}), ({"rms_norm_eps": "x"}, {}), ({}, {"a": 99})],
)
def test_what_no_file_can_say_is_an_error(config, vocabulary, tmp_path):
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    tokenizer = {"model": model, "pre_tokenizer": {"type": "ByteLevel"}}
    config = exported.CONFIG | {"vocab_size": 3} | config
    texts = {"config.json": json.dumps(config), "tokenizer.json": json.dumps(tokenizer)}
    with pytest.raises(InputError, match=r"config\.json"):
        exporting.export(tmp_path / "x", {}, "gguf", beside=texts)
