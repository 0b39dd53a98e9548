"""Experts: MLPs of which a router gives each token a few, and one that takes all of them.

Tokens are sorted by expert, so that the tokens of an expert lie next to each other and meet its
matrices in one product of `grouped_matmul`; results go back in the order of the tokens. Over a mesh
whose devices have some experts each, what they make of tokens is added once a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jentropy import pallas_kernels as kernels
from jentropy.pallas_kernels.grouped import on_groups

from .config import DecoderConfig
from .expert_config import ExpertsConfig
from .layers import ACTIVATIONS, INIT_STD, MLP, Around, Linear
from .sums import softmax, summed

LEAST = 1e-20  # added to a sum of scores that others are divided by


class Router(Linear):
    """Chooses the experts of every token."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        experts = _of(config)
        super().__init__(config.hidden_size, experts.count, use_bias=experts.bias, rngs=rngs)
        corrections = jnp.zeros((experts.count,))
        self.e_score_correction_bias = nnx.Param(corrections) if experts.correction else None
        self.config = experts

    def choose(
        self, x: Float[Array, "tokens width"]
    ) -> tuple[Float[Array, "tokens chosen"], Int[Array, "tokens chosen"]]:
        """Scores of the experts that take each token, float32, and which they are."""
        config = self.config
        logits = self(x, jnp.float32 if config.logits_in_float32 else None).astype(jnp.float32)
        scores = logits
        if config.scoring == "softmax":
            scores = softmax(logits)
        elif config.scoring == "sigmoid":
            scores = jax.nn.sigmoid(logits)
        ranks = scores
        if self.e_score_correction_bias is not None:
            ranks = ranks + self.e_score_correction_bias.get_value().astype(jnp.float32)
        _, chosen = jax.lax.top_k(_within_groups(ranks, config), config.per_token)
        scores = jnp.take_along_axis(scores, chosen, axis=-1)
        if config.scoring == "softmax of the chosen":
            scores = softmax(scores)
        if config.normalized:
            scores = scores / (summed(scores)[:, None] + LEAST)
        if config.scale != 1:
            scores = scores * config.scale
        dtype = jnp.float32 if config.scores_in_float32 else x.dtype
        return scores.astype(dtype).astype(jnp.float32), chosen


def _within_groups(
    ranks: Float[Array, "tokens experts"], config: ExpertsConfig
) -> Float[Array, "tokens experts"]:
    """Ranks of the experts in the best groups; the others never."""
    if config.groups == 1:
        return ranks
    grouped = ranks.reshape(ranks.shape[0], config.groups, -1)
    best = summed(jax.lax.top_k(grouped, config.best_of_group)[0])
    _, kept = jax.lax.top_k(best, config.kept_groups)
    is_kept = (kept[:, :, None] == jnp.arange(config.groups)).any(1)
    return jnp.where(is_kept[:, :, None], grouped, -jnp.inf).reshape(ranks.shape)


class Matrices(NamedTuple):
    """Weights of a projection, dense or compressed, as `mixed` takes them."""

    weight: Any  # [experts, outputs, inputs]
    bias: Any = None  # [experts, outputs]
    around: Around | None = None  # as of `Linear`


class Projection(nnx.Module):
    """Matrices of all experts, [experts, outputs, inputs], dense or compressed."""

    around: Around | None = None  # as of `Linear`

    def __init__(self, experts: int, inputs: int, outputs: int, *, use_bias: bool, rngs: nnx.Rngs):
        normal = jax.random.normal(rngs.params(), (experts, outputs, inputs))
        self.weight = nnx.Param(INIT_STD * normal)
        self.bias = nnx.Param(jnp.zeros((experts, outputs))) if use_bias else None

    def matrices(self) -> Matrices:
        """The weights."""
        bias = None if self.bias is None else self.bias.get_value()
        return Matrices(self.weight.get_value(), bias, self.around)


class ExpertMLPs(nnx.Module):
    """Weights of all experts of a layer, which lie in three stacks."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        experts, width = _of(config), config.hidden_size
        count, inner, use_bias = experts.count, experts.intermediate_size, experts.bias
        self.gate_proj = Projection(count, width, inner, use_bias=use_bias, rngs=rngs)
        self.up_proj = Projection(count, width, inner, use_bias=use_bias, rngs=rngs)
        self.down_proj = Projection(count, inner, width, use_bias=use_bias, rngs=rngs)

    def matrices(self) -> tuple[Matrices, Matrices, Matrices]:
        """Of gate, up and down."""
        return self.gate_proj.matrices(), self.up_proj.matrices(), self.down_proj.matrices()


class Experts(nnx.Module):
    """The sum of what the chosen experts make of a token, by their scores, and the shared one."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        experts = _of(config)
        self.gate = Router(config, rngs=rngs)
        self.experts = ExpertMLPs(config, rngs=rngs)
        shared = experts.shared_size
        self.shared_experts = MLP(config, shared, rngs=rngs) if shared else None
        self.activation, self.config = config.activation, experts

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        tokens = x.reshape(-1, x.shape[-1])
        scores, chosen = self.gate.choose(tokens)
        gated = gating(self.activation, self.config)
        y = mixed(tokens, scores, chosen, *self.experts.matrices(), gated=gated)
        y = y.astype(x.dtype).reshape(x.shape)
        return y if self.shared_experts is None else y + self.shared_experts(x)


def gating(activation: str, config: ExpertsConfig) -> Callable[[Array, Array], Array]:
    """What experts make of gate and up."""
    limit, act = config.limit, ACTIVATIONS[activation]
    if limit is None:
        return lambda gate, up: act(gate) * up
    return lambda gate, up: clamped(gate, up, limit=limit, alpha=config.alpha)


def clamped(
    gate: Float[Array, "*batch"], up: Float[Array, "*batch"], *, limit: float, alpha: float
) -> Float[Array, "*batch"]:
    """SwiGLU of gpt-oss: (up + 1) * gate * sigmoid(alpha * gate), both within the limit."""
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return (up + 1) * (gate * jax.nn.sigmoid(gate * alpha))


def mixed(
    x: Float[Array, "tokens width"],
    scores: Float[Array, "tokens chosen"],
    chosen: Int[Array, "tokens chosen"],
    gate: Matrices,
    up: Matrices,
    down: Matrices,
    *,
    gated: Callable[[Array, Array], Array],
) -> Float[Array, "tokens width"]:
    """The sum over the chosen experts.

    Args:
      scores: of the experts that take each token.
      chosen: which they are.
      gate, up, down: matrices of all experts.
      gated: see `gating`.

    Returns:
      float32 sums.
    """
    experts = chosen.reshape(-1)
    order = jnp.argsort(experts, stable=True)
    sizes = (experts[:, None] == jnp.arange(gate.weight.shape[0])).sum(0, dtype=jnp.int32)

    def each(rows: Array, weights: Any, sizes: Array, biases: Any) -> Array:
        def project(rows: Array, weight: Any, bias: Array | None, around: Any) -> Array:
            def product(rows: Array) -> Array:
                return kernels.grouped_matmul(
                    rows, weight, sizes, transpose_w=True, precision="highest"
                )

            y = product(rows) if around is None else around(product, rows, sizes)
            return y if bias is None else y + bias

        arounds = [part.around for part in parts]
        of_gate, of_up, of_down = zip(weights, biases, arounds, strict=True)
        return project(gated(project(rows, *of_gate), project(rows, *of_up)), *of_down)

    parts, rows = (gate, up, down), x[order // chosen.shape[1]]
    biases = [
        None if part.bias is None else kernels.take_rows(part.bias, experts[order], x.dtype)
        for part in parts
    ]
    made = on_groups(each, rows, [part.weight for part in parts], sizes, biases)
    back = jnp.zeros(made.shape, jnp.float32).at[order].set(made.astype(jnp.float32))
    return summed((back.reshape(*chosen.shape, -1) * scores[:, :, None]).swapaxes(1, 2))


def _of(config: DecoderConfig) -> ExpertsConfig:
    assert config.experts is not None
    return config.experts
