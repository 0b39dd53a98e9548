"""Weights that run as they are stored, with whatever lies beside their codes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jentropy import models
from jentropy.pallas_kernels import ResidentTensor

from .conftest import same_bits
from .test_layer_stacks import IDS, both, logits, rewritten

DOWN = "model.layers.{}.mlp.down_proj"


def test_factors_of_a_layers_input_are_a_parameter_of_its_weight(fixtures, tmp_path):
    scales = np.exp2(np.random.default_rng(0).integers(-3, 3, 128)).astype(np.float32)

    def scaled(arrays):
        for layer in range(2):
            arrays[f"{DOWN.format(layer)}.pre_quant_scale"] = jnp.asarray(scales)
        return arrays

    def multiplied(arrays):
        for layer in range(2):
            arrays[f"{DOWN.format(layer)}.weight"] *= scales[None]
        return arrays

    source = fixtures / "llama_fp32"
    expected = models.load(rewritten(source, tmp_path / "multiplied", multiplied))
    for model in both(rewritten(source, tmp_path / "scaled", scaled)):
        weight = model.layers[0].mlp.down_proj.weight.get_value()
        assert isinstance(weight, ResidentTensor)
        assert same_bits(logits(model, IDS), logits(expected, IDS))
    dense = models.load(tmp_path / "scaled", dense=True)
    assert same_bits(logits(dense, IDS), logits(expected, IDS))


def block_fp8(matrix: np.ndarray, block: int) -> tuple[jax.Array, np.ndarray]:
    """E4M3 codes of a matrix, and what those of every block are multiplied by."""
    padded = np.pad(matrix, [(0, -n % block) for n in matrix.shape])
    tiles = padded.reshape(padded.shape[0] // block, block, -1, block)
    scales = np.abs(tiles).max((1, 3)) / 448 + 1e-12
    codes = (tiles / scales[:, None, :, None]).reshape(padded.shape).astype(ml_dtypes.float8_e4m3fn)
    return jnp.asarray(codes[: matrix.shape[0], : matrix.shape[1]]), scales.astype(np.float32)


def test_deepseek_runs_from_its_fp8_blocks(fixtures, tmp_path):
    """As DeepSeek-V3 is published: codes, one scale of blocks, and a layer that predicts ahead."""

    def quantised(arrays):
        ahead = {n.replace("layers.1", "layers.2"): a for n, a in arrays.items() if "layers.1" in n}
        arrays |= ahead | {"model.layers.2.eh_proj.weight": arrays["model.embed_tokens.weight"]}
        bias = "model.layers.1.mlp.gate.e_score_correction_bias"
        arrays[bias] = arrays[bias].astype(jnp.float32) * 1.0001
        for name in [n for n in arrays if n.endswith("_proj.weight") or "with_mqa.w" in n]:
            codes, scales = block_fp8(np.asarray(arrays[name], np.float32), 16)
            arrays |= {name: codes, f"{name}_scale_inv": jnp.asarray(scales)}
        return arrays

    config = {
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [16, 16],
        }
    }
    source = rewritten(fixtures / "models" / "deepseek_v3", tmp_path / "model", quantised, config)
    dense = models.load(source, compute_dtype=jnp.float32, dense=True)
    ids = IDS % 61
    expected = logits(dense, ids)
    found = []
    for model in both(source):
        routed = model.layers[1]
        attention, experts = routed.self_attn, routed.mlp.experts
        for part in (attention.kv_b_proj, attention.o_proj, experts.up_proj, experts.down_proj):
            weight = part.weight.get_value()
            assert weight.number_format.element.name == "FP8_E4M3"
        assert routed.mlp.gate.e_score_correction_bias.get_value().dtype == jnp.float32
        found.append(logits(model, ids))
        assert np.abs(found[-1] - expected).max() / np.abs(expected).max() < 1e-5
    assert same_bits(*found)
