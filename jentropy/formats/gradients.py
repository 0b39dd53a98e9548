"""Quantised numbers with a gradient: what training that simulates a format takes.

Rounding has a derivative of zero almost everywhere, so `quantize` refuses one. A gradient rule says
what stands for it, with scales held fixed:

    straight_through  1 within the element's range, 0 beyond
    dge               of a smooth step between neighbouring numbers, 1/k |2 u - 1|^(1/k - 1), 3 at
                      the most, u being how far a weight is from the lower to the upper one

References:
  Bengio et al. 2013, arXiv 1308.3432; Wang et al. 2025, Optimizing large language model training
  using FP4 quantization, arXiv 2501.17116, section 3.1 (DGE, k = 5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from jentropy import modes
from jentropy.errors import UnsupportedError

from .dequantizing import dequantize
from .encoding import levels_of, limits_of
from .fitting import grid_numbers
from .format import Format
from .quantizing import quantize

DGE_K = 5.0
STEEPEST = 3.0  # as the paper clips it


def _straight_through(
    units: Float32[Array, "*shape"], levels: Float32[Array, " levels"]
) -> Float32[Array, "*shape"]:
    return jnp.ones_like(units)


def _dge(
    units: Float32[Array, "*shape"], levels: Float32[Array, " levels"]
) -> Float32[Array, "*shape"]:
    above = jnp.searchsorted(levels, units, side="right", method="scan_unrolled")
    above = jnp.clip(above, 1, levels.size - 1)
    low, high = levels[above - 1], levels[above]
    middle = jnp.abs(2 * (units - low) / (high - low) - 1)
    return jnp.minimum(middle ** (1 / DGE_K - 1) / DGE_K, STEEPEST)


GRADIENT_RULES: dict[str, Callable[..., Array]] = {
    "straight_through": _straight_through,
    "dge": _dge,
}


def fake_quantize(
    values: Float[Array, "*shape"],
    number_format: Format,
    *,
    gradient: str,
    scale_rule: str | None = None,
) -> Float[Array, "*shape"]:
    """Numbers as they are after quantisation, with a gradient that a rule says.

    Args:
      values: float32, bfloat16 or float16.
      number_format: see `quantize`.
      gradient: one of `GRADIENT_RULES`.
      scale_rule: see `quantize`.

    Returns:
      Numbers of the values' shape and dtype.

    Raises:
      UnsupportedError: no such rule; DGE of an element of more than 16 bits; see `quantize` too.

    Example:
      >>> from jentropy.formats import MXFP4
      >>> loss = lambda x: fake_quantize(x, MXFP4, gradient="dge").sum()
      >>> [round(float(x), 1) for x in jax.grad(loss)(jnp.array([4.0, 0.26]))]
      [0.2, 2.6]
    """
    if gradient not in GRADIENT_RULES:
        raise UnsupportedError(
            "gradient rule", expected=" or ".join(GRADIENT_RULES), found=gradient
        )
    return _faked(values, number_format, gradient, scale_rule)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _faked(
    values: Float[Array, "*shape"], number_format: Format, gradient: str, rule: str | None
) -> Float[Array, "*shape"]:
    arrays = quantize(values, number_format, scale_rule=rule)
    return dequantize(number_format, arrays, values.dtype)


@modes.standard
def _forward(
    values: Float[Array, "*shape"], number_format: Format, gradient: str, rule: str | None
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    arrays = quantize(values, number_format, scale_rule=rule)
    units = grid_numbers(values.astype(jnp.float32), number_format, arrays)
    limits = limits_of(number_format.element)
    inside = (units >= limits.lowest) & (units <= limits.largest)
    levels = jnp.zeros(2) if gradient == "straight_through" else _levels(number_format)
    slope = jnp.where(inside, GRADIENT_RULES[gradient](units, levels), 0.0)
    numbers = dequantize(number_format, arrays, values.dtype)
    return numbers, slope.astype(values.dtype)


def _levels(number_format: Format) -> Float32[Array, " levels"]:
    return jnp.asarray(levels_of(number_format.element)[0])


def _backward(
    number_format: Format,
    gradient: str,
    rule: str | None,
    slope: Float[Array, "*shape"],
    cotangent: Float[Array, "*shape"],
) -> tuple[Float[Array, "*shape"]]:
    return (slope * cotangent,)


_faked.defvjp(_forward, _backward)
