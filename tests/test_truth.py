"""Every architecture against what transformers computes: logits, and tokens one after the other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jentropy
from jentropy import models
from jentropy.checkpoints import safetensors
from jentropy.models import ARCHITECTURES, Decoder
from jentropy.pallas_kernels import ResidentTensor

from .conftest import same_bits

MODELS = Path(__file__).parent / "fixtures" / "models"
NAMES = sorted(file.parent.name for file in MODELS.glob("*/config.json"))
# Others, larger, where the variable names their place.
SHARED = Path(os.environ.get("JENTROPY_SHARED", "none")) / "fixtures" / "models"
PROMPT = 8  # tokens of `greedy` that were given
BOUND = 1e-5  # of the largest logit
# What tells caches apart; tokens of the others are chosen by the pass over all of them alone.
CACHED = {
    "deepseek_v3": "latents",
    "gemma3": "windows and ropes by layer",
    "gpt_oss": "sinks",
    "llama_dynamic": "a rope that follows the length",
    "phi3_longrope": "a rope that is outgrown",
    "qwen2": "windows from a layer on",
    "smollm3": "layers without a rope",
}


pytestmark = pytest.mark.usefixtures("compiled_quickly")


def class_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["architectures"][0]


def reference(folder: Path) -> dict[str, np.ndarray]:
    file = folder.with_name(f"{folder.name}.logits.safetensors")
    return {array.name: np.array(array.read()) for array in safetensors.read(file).arrays}


def logits(model: Decoder, ids: np.ndarray) -> np.ndarray:
    return np.asarray(model(jnp.asarray(ids, jnp.int32)))


def greedy(model: Decoder, expected: np.ndarray) -> np.ndarray:
    new = expected.shape[1] - PROMPT
    return np.asarray(models.generate(model, expected[:, :PROMPT], max_new_tokens=new))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check(source: Path, target: Path) -> tuple[Decoder, Decoder]:
    """One pass over all sequences gives the logits and says which token would come next."""
    truth = reference(source)
    jentropy.compress_checkpoint(source, target)
    dense, ours = (models.load(path, compute_dtype=jnp.float32) for path in (source, target))
    leaves = jax.tree.leaves(nnx.state(ours), is_leaf=lambda leaf: isinstance(leaf, ResidentTensor))
    assert any(isinstance(leaf, ResidentTensor) for leaf in leaves)
    ids, tokens = truth["input_ids"], truth["greedy"]
    is_fixed = dense.config.rope.kind not in ("dynamic", "longrope")
    if is_fixed:  # else the frequencies of sequences follow from the longest one
        ids = np.pad(ids, ((0, 0), (0, tokens.shape[1] - ids.shape[1])))
        ids = np.concatenate((ids, tokens))
    found = [logits(model, ids) for model in (dense, ours)]
    assert same_bits(*found)
    batch, time, _ = truth["logits"].shape
    assert relative_error(found[0][:batch, :time], truth["logits"]) < BOUND
    if is_fixed:
        following = found[0][batch:, PROMPT - 1 : -1].argmax(axis=-1)
        np.testing.assert_array_equal(following, tokens[:, PROMPT:])
    return dense, ours


@pytest.mark.parametrize("name", NAMES)
def test_tiny_models(name, tmp_path):
    dense, _ = check(MODELS / name, tmp_path / "packed")
    if name in CACHED:
        tokens = reference(MODELS / name)["greedy"]
        np.testing.assert_array_equal(greedy(dense, tokens), tokens)


def test_activations_in_bf16():
    """What is loaded by default: products of latents by heads have to be such as CPUs have."""
    model, truth = models.load(MODELS / "deepseek_v3"), reference(MODELS / "deepseek_v3")
    assert model.compute_dtype == jnp.bfloat16
    assert relative_error(logits(model, truth["input_ids"]), truth["logits"]) < 0.05
    two = np.concatenate((truth["greedy"], truth["greedy"]))[:, :PROMPT]
    found = np.asarray(models.generate(model, two, max_new_tokens=2))
    np.testing.assert_array_equal(found[0], found[1])


def test_every_architecture_has_a_tiny_model():
    assert {class_of(MODELS / name) for name in NAMES} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "source", sorted(p for p in SHARED.glob("*") if p.is_dir()), ids=lambda path: path.name
)
def test_others(source, tmp_path):
    tokens = reference(source)["greedy"]
    for model in check(source, tmp_path / "packed"):
        np.testing.assert_array_equal(greedy(model, tokens), tokens)
