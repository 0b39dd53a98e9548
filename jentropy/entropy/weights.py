"""Counts of one weight's codes and of the parameters that its blocks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jentropy import formats, modes
from jentropy.formats import Format, Parameter, SideArray

from .statistics import SLICE_BITS, Counts, begin, measure_slice

SLAB = 1 << 22  # weights whose numbers are in memory at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCounts:
    """Histograms of a weight, or the sum of many weights'.

    Attributes:
      number_format: its element and parameters.
      weights: how many were counted.
      code: counts of the element codes.
      parameters: counts of every parameter's codes, and of those of the arrays of decoder and
        transforms, by name.
      magnitudes: counts of the leading 16 bits of the FP32 numbers of a block format; None where
        the codes say it themselves, or have no numbers.

    Example:
      >>> counts = measure_weight({"code": np.zeros(8, np.uint16)}, formats.FORMATS["FP16"])
      >>> counts.weights, counts.allocated_bits(), (counts + counts).entropy_bits()
      (8, 16.0, 0.0)
    """

    number_format: Format
    weights: int
    code: Counts
    parameters: Mapping[str, Counts]
    magnitudes: np.ndarray | None = None

    def __add__(self, other: WeightCounts) -> WeightCounts:
        return WeightCounts(
            number_format=self.number_format,
            weights=self.weights + other.weights,
            code=self.code + other.code,
            parameters={
                key: self.parameters[key] + other.parameters[key] for key in self.parameters
            },
            magnitudes=None
            if self.magnitudes is None or other.magnitudes is None
            else self.magnitudes + other.magnitudes,
        )

    @property
    def key(self) -> tuple:
        """Equal where counts can be added."""
        described, code_bits = self.number_format, self.code.element.code_bits
        elements = tuple((p.name, p.element.name) for p in described.beside)
        return described.name, described.element.name, code_bits, elements

    @property
    def _codes(self) -> float:
        """Element codes for each weight: fewer of vectors."""
        return self.code.weights / self.weights if self.weights else 1.0

    def _with_parameters(
        self, fields: dict[str, float], bits: Callable[[Any], float]
    ) -> dict[str, float]:
        """Bits of each field for each weight, once those of the parameters are added."""
        for p in self.number_format.beside if self.parameters else ():
            entries = self.parameters[p.name].weights / max(1, self.weights)  # for each weight
            fields[p.field] = fields.get(p.field, 0.0) + bits(p) * entries
        return fields

    def field_allocated_bits(self) -> dict[str, float]:
        """Bits stored of each field for each weight."""
        fields = {f.name: f.bits * self._codes for f in self.code.element.fields}
        return self._with_parameters(fields, lambda p: p.element.code_bits)

    def field_entropy_bits(self) -> dict[str, float]:
        """Entropy of each field, bits per weight."""
        fields = self.code.field_entropy_bits().items()
        by_weight = {name: bits * self._codes for name, bits in fields}
        return self._with_parameters(by_weight, self._parameter_bits)

    def _parameter_bits(self, parameter: Parameter | SideArray) -> float:
        """Entropy of an entry of a parameter."""
        return self.parameters[parameter.name].whole_entropy_bits()

    def described_bits(self) -> float:
        """`Counts.described_bits` of codes and parameters, per weight."""
        described = {name: counts.described_bits() for name, counts in self.parameters.items()}
        parameters = self._with_parameters({}, lambda p: described[p.name])
        return self._codes * self.code.described_bits() + sum(parameters.values())

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
        return self._codes * joint + sum(self._with_parameters({}, self._parameter_bits).values())


class Slab(dict[str, Any]):
    """Arrays of a part of a weight.

    Args:
      arrays: as `measure_weight` takes them.
      counted: names of those that were counted with another part: one entry serves both.

    Example:
      >>> slab = Slab({"code": np.zeros(8, np.uint16)}, {"scale"})
      >>> sorted(slab), slab.counted
      (['code'], frozenset({'scale'}))
    """

    def __init__(self, arrays: Mapping[str, Any], counted: Collection[str] = ()):
        super().__init__(arrays)
        self.counted = frozenset(counted)


def measure_weight(arrays: Mapping[str, Any], number_format: Format) -> WeightCounts:
    """Counts the codes of a weight.

    Args:
      arrays: `code` and every parameter of the format, as `formats.dequantize` takes them, all of
        NumPy; or `code` alone, of JAX, over any devices. Of a part of a weight a `Slab`.
      number_format: their format.

    Returns:
      Counts of every array, and the magnitudes of what a block format's codes stand for.

    Example:
      >>> codes = np.array([0x3F80, 0x3F80, 0xBF80, 0xBF80], np.uint16)  # 1, 1, -1, -1
      >>> counts = measure_weight({"code": codes}, formats.FORMATS["BF16"])
      >>> counts.field_entropy_bits()
      {'sign': 1.0, 'exponent': 0.0, 'mantissa': 0.0}
    """
    with modes.detached_modes():
        return begin_weight(arrays, number_format)()


def begin_weight(arrays: Mapping[str, Any], number_format: Format) -> Callable[[], WeightCounts]:
    """What `measure_weight` does, with what XLA does still to be awaited: in `detached_modes`.

    Args:
      arrays, number_format: as `measure_weight` takes them; arrays stay as they are until the
        counts are there.

    Returns:
      What gives the counts.
    """
    counted = arrays.counted if isinstance(arrays, Slab) else ()
    magnitudes = None
    if not number_format.is_plain:  # first: it refuses codes that are none
        magnitudes = np.zeros(1 << SLICE_BITS, np.int64)
        top = formats.FP32.code_bits - SLICE_BITS
        for numbers in formats.dequantize_slabs(number_format, arrays, SLAB):
            magnitudes += measure_slice(numbers.view(np.uint32), top)
    code = begin(arrays["code"], number_format.element)
    parameters = {
        p.name: begin(arrays[p.name][:0] if p.name in counted else arrays[p.name], p.element)
        for p in number_format.beside
    }
    return lambda: WeightCounts(
        number_format=number_format,
        weights=math.prod(number_format.shape(tuple(arrays["code"].shape))),
        code=code(),
        parameters={name: one() for name, one in parameters.items()},
        magnitudes=magnitudes,
    )
