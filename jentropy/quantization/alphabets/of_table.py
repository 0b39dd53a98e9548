"""A published table of numbers and a scale per group: NF4, powers of two, APoT, posit, bipolar."""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.formats import BF16, WHOLE, ElementFormat, Format
from jentropy.formats.blocks import scale
from jentropy.quantization.level_tables import table_element

from .elementwise import Elementwise


@dataclass(frozen=True, slots=True, kw_only=True)
class OfTable(Elementwise):
    """A table of `level_tables.LEVEL_TABLES`.

    Example:
      >>> OfTable(table="NF", group=64).formats(64)[0].name
      'NF4'
    """

    table: str
    bits: int = 4
    group: int = 128  # columns that share a scale; 0: a row
    scale: ElementFormat = BF16

    def formats(self, columns: int) -> tuple[Format, ...]:
        """One format."""
        element = table_element(self.table, self.bits)
        parameters = (scale(self.scale, (1, self.group or WHOLE)),)
        return (Format(name=element.name, element=element, parameters=parameters),)
