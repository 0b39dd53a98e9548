"""Counts of one weight's codes and of the parameters that its blocks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jentropy import formats
from jentropy.formats import Format

from .statistics import SLICE_BITS, Counts, measure, measure_slice

SLAB = 1 << 22  # weights whose numbers are in memory at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCounts:
    """Histograms of a weight, or the sum of many weights'.

    Attributes:
      format: its element and parameters.
      code: counts of the element codes.
      parameters: counts of every parameter's codes, by name.
      magnitudes: counts of the leading 16 bits of the FP32 numbers of a block format; None where
        the codes say it themselves, or have no numbers.
    """

    format: Format
    code: Counts
    parameters: Mapping[str, Counts]
    magnitudes: np.ndarray | None = None

    def __add__(self, other: WeightCounts) -> WeightCounts:
        return WeightCounts(
            format=self.format,
            code=self.code + other.code,
            parameters={
                key: self.parameters[key] + other.parameters[key] for key in self.parameters
            },
        )

    @property
    def weights(self) -> int:
        """Weights counted."""
        return self.code.weights

    @property
    def key(self) -> tuple:
        """Equal where counts can be added."""
        elements = tuple((p.name, p.element.name) for p in self.format.parameters)
        return self.format.name, self.format.element.name, self.code.element.code_bits, elements

    def _share(self, name: str) -> float:
        """Entries of a parameter for each weight."""
        return self.parameters[name].weights / max(1, self.weights)

    def field_allocated_bits(self) -> dict[str, float]:
        """Bits stored of each field for each weight."""
        allocated = {f.name: float(f.bits) for f in self.code.element.fields}
        for p in self.format.parameters:
            spread = p.element.code_bits * self._share(p.name)
            allocated[p.field] = allocated.get(p.field, 0.0) + spread
        return allocated

    def field_entropy_bits(self) -> dict[str, float]:
        """Entropy of each field, bits per weight."""
        entropies = self.code.field_entropy_bits()
        for p in self.format.parameters:
            spread = self.parameters[p.name].whole_entropy_bits() * self._share(p.name)
            entropies[p.field] = entropies.get(p.field, 0.0) + spread
        return entropies

    def allocated_bits(self) -> float:
        """Bits stored for each weight."""
        return sum(self.field_allocated_bits().values())

    def entropy_bits(self) -> float:
        """Sum of the fields' entropies, bits per weight."""
        return sum(self.field_entropy_bits().values())

    def joint_entropy_bits(self) -> float | None:
        """Entropy of whole codes, parameters spread over them; None above 16 bits a code."""
        joint = self.code.joint_entropy_bits()
        if joint is None:
            return None
        return joint + sum(
            self.parameters[p.name].whole_entropy_bits() * self._share(p.name)
            for p in self.format.parameters
        )


def measure_weight(arrays: Mapping[str, np.ndarray], number_format: Format) -> WeightCounts:
    """Counts the codes of a weight.

    Args:
      arrays: `code` and every parameter of the format, as `formats.dequantize` takes them.
      number_format: their format.
    """
    counted = {p.name: measure(arrays[p.name], p.element) for p in number_format.parameters}
    magnitudes = None
    if number_format.parameters:
        magnitudes = np.zeros(1 << SLICE_BITS, np.int64)
        for numbers in formats.dequantize_slabs(number_format, arrays, SLAB):
            top = formats.FP32.code_bits - SLICE_BITS
            magnitudes += measure_slice(numbers.view(np.uint32), top)
    return WeightCounts(
        format=number_format,
        code=measure(arrays["code"], number_format.element),
        parameters=counted,
        magnitudes=magnitudes,
    )
