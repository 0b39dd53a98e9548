"""Layers whose weights may be compressed.

A weight is a dense array or a `ResidentTensor`; `jentropy.matmul` takes both, so a layer computes
the same bits over either. Weights lie as in checkpoints: [out, in] and [vocabulary, width].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jentropy import pallas_kernels as kernels

INIT_STD = 0.02


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
    """

    def __init__(self, inputs: int, outputs: int, *, use_bias: bool = False, rngs: nnx.Rngs):
        self.weight = nnx.Param(INIT_STD * jax.random.normal(rngs.params(), (outputs, inputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if use_bias else None

    def __call__(
        self, x: Float[Array, "*batch inputs"], out_dtype: DTypeLike | None = None
    ) -> Float[Array, "*batch outputs"]:
        y = _product(x, self.weight, out_dtype)
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
    """x / rms(x) * weight over the last axis, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, *, eps: float):
        self.weight = nnx.Param(jnp.ones((width,)))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(x.dtype) * self.weight.get_value().astype(x.dtype)
