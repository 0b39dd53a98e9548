"""An element's numbers in order: what roundings move among. A *place* is a number's rank."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, UInt

from jentropy.formats import ElementFormat, code_dtype
from jentropy.formats.encoding import levels_of, limits_of

UNSEEN = 0.02  # times that a number counts which does not occur


def _is_integers(element: ElementFormat) -> bool:
    """Whether places are numbers, but for the least: no table is needed."""
    return element.bias is None and element.table is None


def nearest(numbers: Float32[Array, "*shape"], element: ElementFormat) -> Int32[Array, "*shape"]:
    """Places of the numbers nearest to given ones, in units of the element.

    Example:
      >>> from jentropy.formats import FP4_E2M1
      >>> nearest(jnp.float32([-9.0, 0.3, 2.4]), FP4_E2M1).tolist()
      [0, 8, 11]
    """
    if _is_integers(element):
        limits = limits_of(element)
        rounded = jnp.clip(jnp.round(numbers), limits.lowest, limits.largest)
        return (rounded - np.float32(limits.lowest)).astype(jnp.int32)
    levels, _ = levels_of(element)
    between = ((levels[1:].astype(np.float64) + levels[:-1]) / 2).astype(np.float32)
    return jnp.searchsorted(jnp.asarray(between), numbers, method="scan_unrolled").astype(jnp.int32)


def numbers(places: Int32[Array, "*shape"], element: ElementFormat) -> Float32[Array, "*shape"]:
    """Numbers at places."""
    if _is_integers(element):
        return places.astype(jnp.float32) + np.float32(limits_of(element).lowest)
    return jnp.asarray(levels_of(element)[0])[places]


def codes(places: Int32[Array, "*shape"], element: ElementFormat) -> UInt[Array, "*shape"]:
    """Codes of the numbers at places."""
    found = jnp.asarray(levels_of(element)[1])[places]
    return found.astype(code_dtype(element.dtype))


def code_bits(places: Int32[Array, "*shape"], element: ElementFormat) -> Float32[Array, " levels"]:
    """Bits that an entropy coder takes for each number, by how often it occurs."""
    size = levels_of(element)[0].size
    return _code_bits(places.reshape(-1), size)


def _code_bits(places: Int32[Array, " weights"], size: int) -> Float32[Array, " levels"]:
    counts = jnp.zeros(size, jnp.float32).at[places].add(1.0) + UNSEEN
    return -jnp.log2(counts / counts.sum())


_code_bits = jax.jit(_code_bits, static_argnums=1)
