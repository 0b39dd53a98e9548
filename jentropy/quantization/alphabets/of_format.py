"""A format as it is: those of `formats.FORMATS`, and any other with scales."""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.formats import Format

from .elementwise import Elementwise


@dataclass(frozen=True, slots=True, kw_only=True)
class OfFormat(Elementwise):
    """A number format whose codes are numbers of its element.

    Example:
      >>> from jentropy.formats import MXFP4
      >>> OfFormat(number_format=MXFP4).formats(64)[0].name
      'MXFP4'
    """

    number_format: Format

    def formats(self, columns: int) -> tuple[Format, ...]:
        """The one."""
        return (self.number_format,)
