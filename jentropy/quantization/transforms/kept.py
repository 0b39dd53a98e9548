"""Arrays of a step as they are kept, and as they are read back."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float32

from jentropy.formats import BF16, ElementFormat, SideArray, codes_of, raw_element
from jentropy.quantization.roundings import levels


def numbers(
    name: str, values: Float32[Array, "*shape"], element: ElementFormat = BF16
) -> tuple[SideArray, Any, Float32[Array, "*shape"]]:
    """Numbers rounded to an element, whose dtype has its values, or unsigned codes of its own.

    Returns:
      What says how they are read, their codes, and what is read.

    Example:
      >>> own, codes, read = numbers("scale", jnp.float32([1.001]))
      >>> own.element.name, codes.dtype.name, read.tolist()
      ('BF16', 'uint16', [1.0])
    """
    own = SideArray(name=name, element=element, shape=values.shape)
    if element.dtype.kind == "u":
        places = levels.nearest(values, element)
        return own, levels.codes(places, element), levels.numbers(places, element)
    rounded = values.astype(element.dtype)
    return own, codes_of(rounded), rounded.astype(jnp.float32)


def whole(name: str, values: Any, dtype: Any) -> tuple[SideArray, Any]:
    """Whole numbers of a dtype.

    Returns:
      What says how they are read, and they.

    Example:
      >>> own, codes = whole("signs", jnp.array([0, 1]), jnp.uint8)
      >>> own.element.name, codes.dtype.name
      ('RAW', 'uint8')
    """
    codes = jnp.asarray(values).astype(dtype)
    return SideArray(name=name, element=raw_element(codes.dtype), shape=codes.shape), codes


def places_dtype(count: int) -> Any:
    """Unsigned integers for places below a number."""
    return next(d for d in (jnp.uint8, jnp.uint16, jnp.uint32) if count <= 1 << 8 * d(0).itemsize)
