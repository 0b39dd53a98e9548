"""Parts of models whose weights may be compressed.

A weight is a dense array or a `ResidentTensor`; `jentropy.matmul` takes both, so a part computes
the same bits over either. Weights lie as in checkpoints: [out, in] and [vocabulary, width].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jentropy import pallas_kernels as kernels

from .config import DecoderConfig
from .sums import summed

INIT_STD = 0.02
TOKENS = 2048  # of a sequence that an MLP takes at once: what is between is wide
# What stands around a product: (what multiplies, x, rows of each group or None) -> its result.
Around = Callable[..., jax.Array]
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def _product(x: jax.Array, weight: nnx.Param, out_dtype: DTypeLike | None) -> jax.Array:
    """x W^T; activations in float32 stay so on every backend."""
    w = weight.get_value()
    return kernels.matmul(x, w, transpose_w=True, out_dtype=out_dtype, precision="highest")


class Linear(nnx.Module):
    """y = x W^T + b, W dense or compressed.

    Args:
      inputs: width of x.
      outputs: width of y.
      use_bias: adds b.
      rngs: source of the initial weights, float32 and normal with standard deviation INIT_STD.

    Attributes:
      around: what sees the input, and may change it, or the product; None: nothing.
    """

    around: Around | None = None

    def __init__(self, inputs: int, outputs: int, *, use_bias: bool = False, rngs: nnx.Rngs):
        self.weight = nnx.Param(INIT_STD * jax.random.normal(rngs.params(), (outputs, inputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if use_bias else None

    def __call__(
        self, x: Float[Array, "*batch inputs"], out_dtype: DTypeLike | None = None
    ) -> Float[Array, "*batch outputs"]:
        product = partial(_product, weight=self.weight, out_dtype=out_dtype)
        y = product(x) if self.around is None else self.around(product, x)
        return y if self.bias is None else y + self.bias.get_value().astype(y.dtype)


class Embed(nnx.Module):
    """Rows of a table by token id; `attend` multiplies by the same table."""

    def __init__(self, vocabulary: int, width: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(INIT_STD * jax.random.normal(rngs.params(), (vocabulary, width)))

    def __call__(
        self, ids: Int[Array | np.ndarray, "*batch"], dtype: DTypeLike
    ) -> Float[Array, "*batch width"]:
        return kernels.take_rows(self.weight.get_value(), ids, dtype)

    def attend(
        self, x: Float[Array, "*batch width"], out_dtype: DTypeLike | None = None
    ) -> Float[Array, "*batch vocabulary"]:
        return _product(x, self.weight, out_dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * (offset + weight) over the last axis, in float32 (arXiv 1910.07467).

    Args:
      width: of x.
      eps: added to the mean square.
      offset: added to the weight.
      wide: whether x is multiplied by the weight in float32, and not in its own dtype.
    """

    def __init__(self, width: int, *, eps: float, offset: float = 0.0, wide: bool = False):
        self.eps, self.offset, self.wide = eps, offset, wide
        self.weight = nnx.Param(jnp.full((width,), 1.0 - offset))

    @classmethod
    def of(cls, config: DecoderConfig, width: int) -> RMSNorm:
        """The norm of an architecture."""
        offset, wide = config.norm_offset, config.norm_in_float32
        return cls(width, eps=config.rms_norm_eps, offset=offset, wide=wide)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(summed(wide * wide)[..., None] / x.shape[-1] + self.eps)
        dtype = jnp.float32 if self.wide else x.dtype
        weight = self.weight.get_value().astype(dtype)
        weight = weight + self.offset if self.offset else weight
        return ((wide * scale).astype(dtype) * weight).astype(x.dtype)


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """x times a number that is not rounded to the dtype of x; the product is."""
    return x if factor == 1 else (x.astype(jnp.float32) * factor).astype(x.dtype)


def soft_capped(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap): almost x where it is small, never above the cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class MLP(nnx.Module):
    """down(act(gate(x)) * up(x)).

    Args:
      config: sizes, activation and biases.
      inner: width between; None: that of the config.
      rngs: source of the initial weights.
    """

    def __init__(self, config: DecoderConfig, inner: int | None = None, *, rngs: nnx.Rngs):
        width, bias = config.hidden_size, config.mlp_bias
        inner = inner or config.intermediate_size
        self.gate_proj = Linear(width, inner, use_bias=bias, rngs=rngs)
        self.up_proj = Linear(width, inner, use_bias=bias, rngs=rngs)
        self.down_proj = Linear(inner, width, use_bias=bias, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        batch, time, width = x.shape
        if time <= TOKENS or time % TOKENS:
            return self._of(x)
        parts = jnp.moveaxis(x.reshape(batch, -1, TOKENS, width), 1, 0)
        return jnp.moveaxis(jax.lax.map(self._of, parts), 0, 1).reshape(x.shape)

    def _of(self, x: Array) -> Array:
        return self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))
