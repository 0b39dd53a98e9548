"""Inputs of layers as a low precision would have them.

A token's channels are rounded to a format, a scale to each token or to each block of channels, and
multiplied by the weights as ever: what kernels that multiply codes compute, but for the order of
their sums. Where a weight's columns were scaled, reordered or rotated before it was quantised, or
its input is to be shifted, the input is rounded in that space and brought back.

References:
  SmoothQuant, arXiv 2211.10438; Outlier Suppression+, arXiv 2304.09145; MXFP4 after a rotation,
  arXiv 2502.20586; ARCQuant, arXiv 2601.07475; COMET, arXiv 2410.12168; TEAL, arXiv 2408.14690.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from jentropy.formats import WHOLE, Format, Step, dequantize, quantize
from jentropy.formats.hadamard import rotated


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What becomes of a token's channels.

    Attributes:
      number_format: of a matrix whose rows are tokens; None: nothing is rounded.
      leading: another format for the first channels; None: they are as the others.
      added: what rounding left of the first channels is rounded to `leading` and added; else they
        are in `leading` alone.
      share: of the channels, that are the first ones, up to whole blocks of `leading`. Which they
        are a recipe says that sorts columns by their largest inputs.
      kept: part of the channels, those of the largest |x| of a token; others become 0.
    """

    number_format: Format | None = None
    leading: Format | None = None
    added: bool = False
    share: float = 0.125
    kept: float = 1.0

    def of(self, rows: Float32[Array, "tokens K"]) -> Float32[Array, "tokens K"]:
        """The channels of some tokens."""
        columns = rows.shape[1]
        if self.kept < 1:
            least = jnp.sort(jnp.abs(rows), axis=1)[:, columns - math.ceil(self.kept * columns)]
            rows = jnp.where(jnp.abs(rows) >= least[:, None], rows, 0)
        if self.number_format is None:
            return rows
        if self.leading is None:
            return _read(rows, self.number_format)
        (scale, *_) = self.leading.parameters
        block = scale.blocks(2)[1]
        block = 1 if block == WHOLE else block
        first = min(columns, math.ceil(self.share * columns / block) * block)
        if not self.added:
            head = _read(rows[:, :first], self.leading)
            tail = rows[:, first:]
            tail = _read(tail, self.number_format) if tail.size else tail
            return jnp.concatenate([head, tail], axis=1)
        found = _read(rows, self.number_format)
        return found.at[:, :first].add(_read((rows - found)[:, :first], self.leading))


def _read(rows: Float32[Array, "tokens K"], number_format: Format) -> Float32[Array, "tokens K"]:
    return dequantize(number_format, quantize(rows, number_format))


class Rounded(nnx.Module):
    """What stands around a product whose input is rounded.

    Args:
      inputs: how.
      steps: of the weight's format, that say in which space.
      arrays: what each of them has for every channel, [..., K].
    """

    def __init__(self, inputs: Inputs, steps: Sequence[Step] = (), arrays: Sequence[Any] = ()):
        self.inputs, self.steps = inputs, tuple(steps)
        self.arrays = nnx.List([nnx.Param(jnp.asarray(one)) for one in arrays])

    def __call__(
        self, product: Callable[[Array], Array], x: Float[Array, "*batch K"], sizes: Any = None
    ) -> Array:
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        arrays = [one.get_value() for one in self.arrays]
        space = list(zip(self.steps, arrays, strict=True))
        for step, array in space:
            rows = SPACES[step.name].there(step, rows, array)
        rows = self.inputs.of(rows)
        for step, array in reversed(space):
            rows = SPACES[step.name].back(step, rows, array)
        return product(rows.astype(x.dtype).reshape(x.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Where a transform of weights takes their inputs.

    Attributes:
      there, back: (step, float32[tokens, K], its array) -> float32[tokens, K].
      neutral: K -> the array that changes nothing; None: there is none.
    """

    there: Callable[[Step, Any, Any], Any]
    back: Callable[[Step, Any, Any], Any]
    neutral: Callable[[int], np.ndarray] | None = None


def _signed(rows: Any, signs: Any) -> Any:
    return jnp.where(signs[None, :] & 1 == 1, -rows, rows)


# By the names of transforms in `formats.transforms`, each of which has one array of its own.
SPACES = {
    "columns": Space(
        there=lambda step, rows, scale: rows * scale[None, :],
        back=lambda step, rows, scale: rows / scale[None, :],
        neutral=lambda columns: np.ones(columns, np.float32),
    ),
    "shift": Space(
        there=lambda step, rows, shift: rows - shift[None, :],
        back=lambda step, rows, shift: rows + shift[None, :],
        neutral=lambda columns: np.zeros(columns, np.float32),
    ),
    "permutation": Space(
        there=lambda step, rows, places: rows[:, jnp.argsort(places)],
        back=lambda step, rows, places: rows[:, places],
        neutral=np.arange,
    ),
    "hadamard": Space(
        there=lambda step, rows, signs: rotated(_signed(rows, signs), step.setting("block")),
        back=lambda step, rows, signs: _signed(
            rotated(rows, step.setting("block"), back=True), signs
        ),
    ),
}


def is_of_inputs(step: Step) -> bool:
    """Whether a transform of a weight has its input in another space.

    Example:
      >>> is_of_inputs(Step(name="low_rank"))
      False
    """
    return step.name in SPACES and (step.name != "hadamard" or step.setting("axis") == 1)
