"""Experts: who takes which token, what the sum over them is, and checkpoints of every form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jentropy
from jentropy import formats, models, modes
from jentropy.errors import InputError, UnsupportedError
from jentropy.models.expert_config import ExpertsConfig
from jentropy.models.experts import Matrices, Router, clamped, gating, mixed
from jentropy.models.names import Place

from .conftest import HERE, same_bits
from .test_layer_stacks import CONFIG, both, logits, rewritten

pytestmark = pytest.mark.usefixtures("compiled_quickly")
TINY = HERE / "fixtures" / "models"
IDS = np.random.default_rng(0).integers(0, 61, (2, 11))
TOKENS, COUNT, CHOSEN = 7, 8, 3


def experts_of(**changes) -> ExpertsConfig:
    return ExpertsConfig(count=COUNT, per_token=CHOSEN, intermediate_size=20, **changes)


def numbers(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(logits) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def choice(experts: ExpertsConfig, logits, correction) -> list[dict[int, float]]:
    """By token the scores of its experts, one token after the other."""
    made = []
    for row in logits:
        scores = {"softmax": softmax(row), "sigmoid": 1 / (1 + np.exp(-row))}.get(
            experts.scoring, row
        )
        ranks = scores + correction
        groups = np.split(np.arange(COUNT), experts.groups)
        worth = [np.sort(ranks[group])[-experts.best_of_group :].sum() for group in groups]
        kept = np.concatenate([groups[g] for g in np.argsort(worth)[-experts.kept_groups :]])
        best = sorted(kept, key=lambda e: -ranks[e])[:CHOSEN]
        taken = scores[best]
        if experts.scoring == "softmax of the chosen":
            taken = softmax(taken)
        if experts.normalized:
            taken = taken / taken.sum()
        made.append(dict(zip(best, taken * experts.scale, strict=True)))
    return made


ROUTERS = {
    "Mixtral": experts_of(normalized=True),
    "Qwen3-MoE": experts_of(),
    "gpt-oss": experts_of(scoring="softmax of the chosen", bias=True),
    "DeepSeek-V2": experts_of(groups=4, kept_groups=2, scale=16.0, logits_in_float32=True),
    "DeepSeek-V3": experts_of(
        scoring="sigmoid",
        correction=True,
        groups=2,
        kept_groups=1,
        best_of_group=2,
        normalized=True,
        scale=2.5,
    ),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_who_takes_a_token(name):
    experts = ROUTERS[name]
    x, weight, added = numbers(TOKENS, 16), numbers(COUNT, 16, seed=1), numbers(2, COUNT, seed=2)
    with modes.standard_modes():
        config = dataclasses.replace(CONFIG, hidden_size=16, experts=experts)
        router = nnx.eval_shape(lambda: Router(config, rngs=nnx.Rngs(0)))
        router.weight.set_value(jnp.asarray(weight))
        expected = x.astype(np.float64) @ weight.T
        if experts.bias:
            router.bias.set_value(jnp.asarray(added[0]))
            expected = expected + added[0]
        if experts.correction:
            router.e_score_correction_bias.set_value(jnp.asarray(added[1]))
        scores, chosen = router.choose(jnp.asarray(x))
    assert (router.bias is not None) == experts.bias
    for row, ids, right in zip(
        scores, chosen, choice(experts, expected, added[1] * experts.correction), strict=True
    ):
        assert set(ids.tolist()) == set(right)
        np.testing.assert_allclose(row, [right[int(i)] for i in ids], rtol=1e-5)


def test_clamped_gates():
    gate, up = np.float32([-9, -1, 0.5, 9]), np.float32([9, -9, 0.25, 1])
    held, limited = np.minimum(gate, 7), np.clip(up, -7, 7)
    expected = (limited + 1) * held / (1 + np.exp(-1.702 * held))
    out = clamped(jnp.asarray(gate), jnp.asarray(up), limit=7.0, alpha=1.702)
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_the_sum_over_chosen_experts():
    """Token by token, biases included."""
    experts = experts_of(bias=True, limit=1.0)
    parts = [
        Matrices(jnp.asarray(numbers(COUNT, *shape, seed=i)), jnp.asarray(numbers(COUNT, shape[0])))
        for i, shape in enumerate([(20, 16), (20, 16), (16, 20)])
    ]
    x, scores = jnp.asarray(numbers(TOKENS, 16)), jnp.asarray(numbers(TOKENS, CHOSEN))
    order = np.argsort(numbers(TOKENS, COUNT, seed=3))
    chosen, gated = jnp.asarray(order[:, :CHOSEN], jnp.int32), gating("silu", experts)
    expected = np.zeros((TOKENS, 16))
    for token in range(TOKENS):
        for score, e in zip(scores[token], chosen[token], strict=True):
            gate, up = (p.weight[e] @ x[token] + p.bias[e] for p in parts[:2])
            made = parts[2].weight[e] @ gated(gate, up) + parts[2].bias[e]
            expected[token] += np.asarray(score * made)

    @jax.jit
    @modes.standard
    def run(parts):
        return mixed(x, scores, chosen, *parts, gated=gated)

    np.testing.assert_allclose(run(parts), expected, atol=1e-5 * np.abs(expected).max())


def stacked(arrays: dict) -> dict:
    """Experts of a checkpoint as transformers 5 has them in memory."""
    made, taken = {}, {}
    for name, array in arrays.items():
        block, found, rest = name.partition(".experts.")
        if "shared" in name or not found:
            made[name.replace("block_sparse_moe", "mlp")] = array
            continue
        number, projection, _ = rest.split(".")
        kind = {"w1": "gate", "w2": "down", "w3": "up"}.get(projection, projection[:-5])
        block = block.replace("block_sparse_moe", "mlp")
        taken.setdefault((block, kind), {})[int(number)] = array
    for block in {block for block, _ in taken}:
        gate, up, down = (
            np.stack([taken[block, kind][e] for e in sorted(taken[block, kind])])
            for kind in ("gate", "up", "down")
        )
        made[f"{block}.experts.gate_up_proj"] = np.concatenate((gate, up), axis=1)
        made[f"{block}.experts.down_proj"] = down
    return made


def with_a_layer_more(arrays: dict) -> dict:
    more = {
        name.replace("layers.1", "layers.2"): array
        for name, array in arrays.items()
        if "layers.1" in name
    }
    return {**arrays, **more, "model.layers.2.eh_proj.weight": np.ones((36, 72), np.float32)}


def test_forms_of_checkpoints(tmp_path):
    """Experts in stacks, and layers that predict further tokens, whose weights nobody asks for."""
    source = TINY / "glm4_moe"
    other = rewritten(source, tmp_path / "model", lambda a: with_a_layer_more(stacked(a)))
    found, expected = (models.load(path, compute_dtype=jnp.float32) for path in (other, source))
    for ours, theirs in zip(
        jax.tree.leaves(nnx.state(found)), jax.tree.leaves(nnx.state(expected)), strict=True
    ):
        assert same_bits(ours, theirs)


def gpt_oss(path: Path) -> Path:
    """Writes a tiny gpt-oss with MXFP4 experts."""
    rng = np.random.default_rng(0)
    bf16 = lambda *shape: jnp.asarray(rng.standard_normal(shape) * 0.2, jnp.bfloat16)  # noqa: E731
    codes = lambda *shape: rng.integers(0, 256, shape, np.uint8)  # noqa: E731
    layer = {
        "input_layernorm.weight": bf16(32) + 1,
        "post_attention_layernorm.weight": bf16(32) + 1,
        "self_attn.sinks": bf16(2),
        "mlp.router.weight": bf16(5, 32),
        "mlp.router.bias": bf16(5),
        "mlp.experts.gate_up_proj_bias": bf16(5, 128),
        "mlp.experts.gate_up_proj_blocks": codes(5, 128, 1, 16),
        "mlp.experts.gate_up_proj_scales": codes(5, 128, 1) % 4 + np.uint8(122),
        "mlp.experts.down_proj_bias": bf16(5, 32),
        "mlp.experts.down_proj_blocks": codes(5, 32, 2, 16),
        "mlp.experts.down_proj_scales": codes(5, 32, 2) % 4 + np.uint8(122),
    }
    for part, (rows, columns) in {
        "q": (32, 32),
        "k": (16, 32),
        "v": (16, 32),
        "o": (32, 32),
    }.items():
        layer[f"self_attn.{part}_proj.weight"] = bf16(rows, columns)
        layer[f"self_attn.{part}_proj.bias"] = bf16(rows)
    arrays = {f"model.layers.0.{name}": array for name, array in layer.items()}
    arrays["model.embed_tokens.weight"], arrays["model.norm.weight"] = bf16(61, 32), bf16(32) + 1
    told = {
        "num_hidden_layers": 1,
        "layer_types": ["sliding_attention"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    }
    return rewritten(TINY / "gpt_oss", path, lambda _: arrays, told)


def test_experts_in_mxfp4_run_as_they_are_stored(tmp_path):
    source = gpt_oss(tmp_path / "model")
    found = []
    for model in both(source):
        for part in ("gate_proj", "up_proj", "down_proj"):
            weight = getattr(model.layers[0].mlp.experts, part).weight.get_value()
            assert isinstance(weight, jentropy.ResidentTensor)
            assert weight.number_format.name == formats.MXFP4.name
            assert weight.bits_per_weight == 4.25
        found.append(logits(model, IDS))
    assert same_bits(*found)
    dense = logits(models.load(source, compute_dtype=jnp.float32, dense=True), IDS)
    np.testing.assert_allclose(found[0], dense, atol=1e-5 * np.abs(dense).max())
    assert np.isfinite(dense).all()


def test_rows_that_take_turns():
    stored = numbers(5, 4, 12)
    fused = Place(path=("w",), shape=(5, 4, 12), rows=(1, 12), step=2, transposed=True)
    np.testing.assert_array_equal(fused.of_array(stored), stored[:, :, 1::2].swapaxes(1, 2))
    bias = Place(path=("b",), shape=(5, 12), rows=(0, 12), step=2, axis=-1)
    np.testing.assert_array_equal(bias.of_array(stored[:, 0]), stored[:, 0, ::2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scoring": "tanh"}, "scoring of experts: expected softmax or"),
        ({"groups": 3}, "experts: expected 3 groups, found 8"),
        ({"groups": 4, "kept_groups": 5}, "1 to 4, found 5"),
        ({"groups": 8, "kept_groups": 2}, "experts of a token: expected 1 to 2, found 3"),
        ({"limit": -1.0}, "swiglu_limit: expected above 0"),
    ],
)
def test_experts_that_do_not_fit(changes, message):
    with pytest.raises((InputError, UnsupportedError), match=message):
        experts_of(**changes)


def test_layers_that_do_not_fit():
    with pytest.raises(InputError, match="routed: expected none without experts"):
        dataclasses.replace(CONFIG, routed=(True,) * CONFIG.num_layers)
    with pytest.raises(InputError, match=r"routed: expected \d+, by layer, found 3"):
        dataclasses.replace(CONFIG, experts=experts_of(), routed=(True,) * 3)
