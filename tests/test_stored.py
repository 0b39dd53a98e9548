"""Weights that run as they are stored, with whatever lies beside their codes."""

from __future__ import annotations

import jax.numpy as jnp
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
