"""A code is a place in a table of levels, with a sign that the codes before it in its row decide.

    levels  [levels], two or more, as `even_levels` has them

Setting `states` says which trellis (`trellises`). The sign is a prefix sum over GF(2) along the
row, so that a decoder needs no loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy.formats.element import ElementFormat
from jentropy.formats.step import Step, namespace
from jentropy.formats.trellises import CHECKS, trellis

from .decoder import Decoder
from .even_levels import are_sound, taken


def _decode(step: Step, element: ElementFormat, codes: Any, arrays: Mapping[str, Any]) -> Any:
    odd = is_odd(codes, step.setting("states"))
    levels = taken(arrays["levels"], codes, element)
    return namespace(codes).where(odd, -levels, levels)


def is_odd(codes: Any, states: int) -> Any:
    """Whether the state before each code is an odd one.

    Args:
      codes: unsigned integers [rows, columns], NumPy or JAX.
      states: of the trellis.

    Returns:
      bool [rows, columns], of the same kind.

    Example:
      >>> is_odd(np.array([[1, 0, 0, 1]], np.uint8), 8).tolist()
      [[False, False, True, True]]
    """
    xp, shape = namespace(codes), trellis(states)
    period = np.arange(codes.shape[-1]) % len(shape.masks)
    parts = (codes & 1).astype(np.uint8) * xp.asarray(shape.contributions[period])
    before = xp.pad(parts[:, :-1], ((0, 0), (1, 0)))
    if xp is np:
        sums = np.bitwise_xor.accumulate(before, axis=1)
    else:
        sums = jax.lax.associative_scan(jnp.bitwise_xor, before, axis=1)
    bits = sums & xp.asarray(shape.masks[period])
    for shift in (4, 2, 1):
        bits = bits ^ bits >> shift
    return (bits & 1) == 1


def _is_sound(step: Step, element: ElementFormat) -> bool:
    return are_sound(step.arrays[0], element) and step.setting("states") in CHECKS


TRELLIS = Decoder(decode=_decode, settings=("states",), arrays=("levels",), is_sound=_is_sound)
