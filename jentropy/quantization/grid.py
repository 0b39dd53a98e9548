"""The numbers that each weight may become, once scales are fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt, UInt32

from jentropy.formats import Format, Role, dequantizing, fitting


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A format of an element with parameters, whose codes are known.

    Attributes:
      parameters: codes of the parameters by name, for a matrix of some shape.
      number_format: elementwise, without transforms.

    Example:
      >>> from jentropy.formats import INT8_ROW, quantize
      >>> weight = jnp.array([[1.0, -2.0, 127.0]])
      >>> codes = quantize(weight, INT8_ROW)
      >>> grid = Grid(number_format=INT8_ROW, parameters={"scale": codes["scale"]})
      >>> grid.decode(grid.encode(weight + 0.3)).tolist()
      [[1.0, -2.0, 127.0]]
    """

    parameters: Mapping[str, Any]
    number_format: Format = field(metadata={"static": True})

    def encode(
        self,
        numbers: Float32[Array, "rows columns"],
        random: UInt32[Array, "rows columns"] | None = None,
    ) -> UInt[Array, "rows columns"]:
        """Codes of the nearest numbers; of one of the two around, at random, with `random` bits."""
        return fitting.nearest(numbers, self.number_format, self.parameters, random)

    def decode(self, code: UInt[Array, "rows columns"]) -> Float32[Array, "rows columns"]:
        """Numbers of codes."""
        arrays = {"code": code, **self.parameters}
        return dequantizing.numbers_of(self.number_format, arrays, None, code.shape)

    def affine(
        self, shape: tuple[int, ...]
    ) -> tuple[Float32[Array, "rows columns"], Float32[Array, "rows columns"]]:
        """Weight of a unit of the element, and which number of the element means 0.

        Args:
          shape: of the weight.

        Returns:
          float32[rows, columns] each: a weight is `(number - second) * first`.
        """
        unit, zeros = jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
        for parameter in fitting.of_weights(self.number_format, fitting.SCALES):
            on_grid = dequantizing.numbers_of(self.number_format, self.parameters, parameter, shape)
            each = dequantizing.spread(on_grid, parameter, shape, None, None)
            unit = unit * each if parameter.role is Role.SCALE else unit / each
        return unit, fitting.grid_numbers(zeros, self.number_format, self.parameters)
