"""A small model in every format that is exported: for the test, and for the tools themselves.

`python -m tests.exported make FOLDER` writes directories; `python tests/exported.py read FOLDER`,
in an environment with torch, transformers, compressed-tensors, gptqmodel and gguf, prints hashes of
the weights that these tools make of them: `fixtures/exported.json`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
LAYER = "model.layers.0."


def quantised() -> dict:
    """By name of a directory: the tool, and the model's tensors."""
    from jentropy import formats
    from jentropy.formats import FP16, QuantizedTensor, quantize

    draw = np.random.default_rng(0)
    weights = {
        f"{LAYER}{module}.weight": (0.05 * draw.normal(size=shape)).astype("f4")
        for module, shape in SHAPES.items()
    }
    others = {
        "model.embed_tokens.weight": draw.normal(size=(64, 64)).astype("f4"),
        "model.norm.weight": np.ones(64, "f4"),
        **{
            f"{LAYER}{name}.weight": np.ones(size, "f4")
            for name, size in (
                ("input_layernorm", 64),
                ("post_attention_layernorm", 64),
                ("self_attn.q_norm", 32),
                ("self_attn.k_norm", 32),
            )
        },
    }
    groups = formats.INT4_GROUP.with_parameter("scale", block=(32,))
    halves = groups.with_parameter("scale", element=FP16)
    bytes_ = formats.INT8_ROW.with_parameter("scale", element=FP16, block=(32,))
    ways = {
        "ct_int4_g32": (groups, "compressed-tensors"),
        "ct_int8_row": (formats.INT8_ROW, "compressed-tensors"),
        "ct_fp8_row": (formats.FP8_ROW, "compressed-tensors"),
        "ct_mxfp4": (formats.MXFP4, "compressed-tensors"),
        "ct_nvfp4": (formats.NVFP4_DIVISOR, "compressed-tensors"),
        "gptq_int4_g32": (halves, "gptq"),
        "gptq_int8_g32": (bytes_, "gptq"),
        "gguf_q4_0": (halves, "gguf"),
        "gguf_q8_0": (bytes_, "gguf"),
    }
    return {
        name: (
            tool,
            others
            | {
                key: QuantizedTensor(
                    number_format=number_format,
                    codes={k: np.asarray(v) for k, v in quantize(w, number_format).items()},
                )
                for key, w in weights.items()
            },
        )
        for name, (number_format, tool) in ways.items()
    }


def hashed(weight: np.ndarray) -> str:
    """Of the numbers as float32, -0 as 0."""
    numbers = np.ascontiguousarray(weight, np.float32) + np.float32(0)
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]


def make(folder: Path) -> None:
    """Writes all directories."""
    from jentropy.checkpoints import exporting

    for name, (tool, tensors) in quantised().items():
        texts = {"config.json": json.dumps(CONFIG)}
        exporting.export(folder / name, tensors, tool, beside=texts)


def read(folder: Path) -> dict[str, dict[str, str]]:
    """What the tools make of the weights."""
    found = {}
    for path in sorted(folder.iterdir()):
        reader = {"ct": _compressed_tensors, "gptq": _gptqmodel, "gguf": _gguf}
        found[path.name] = {n: hashed(w) for n, w in reader[path.name.split("_")[0]](path)}
    return found


def _compressed_tensors(path: Path):
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    config = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=config, dtype="float32")
    for module in SHAPES:
        linear = model.get_submodule(LAYER + module)
        yield f"{LAYER}{module}.weight", linear.weight.detach().float().numpy()


def _gptqmodel(path: Path):
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
    from safetensors.torch import load_file

    config = json.loads((path / "config.json").read_text())["quantization_config"]
    stored = load_file(path / "model.safetensors")
    for module, (rows, columns) in SHAPES.items():
        linear = TorchLinear(
            bits=config["bits"],
            group_size=config["group_size"],
            sym=True,
            desc_act=False,
            in_features=columns,
            out_features=rows,
            bias=False,
            pack_dtype=torch.int32,
            register_buffers=True,
        )
        for key in ("qweight", "qzeros", "scales", "g_idx"):
            getattr(linear, key).data = stored[f"{LAYER}{module}.{key}"]
        convert_gptq_v1_to_v2_format_module(linear, config["bits"], torch.int32)
        linear.post_init()
        yield f"{LAYER}{module}.weight", linear.dequantize_weight().T.float().numpy()


def _gguf(path: Path):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    for tensor in GGUFReader(path / "model.gguf").tensors:
        if tensor.name.startswith("blk.") and "norm" not in tensor.name:
            yield tensor.name, dequantize(tensor.data, tensor.tensor_type)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        print(json.dumps(read(Path(sys.argv[2])), indent=1))
