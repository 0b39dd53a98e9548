"""How one tensor's chunks are coded: what a decoder must know beside the chunks."""

from __future__ import annotations

from dataclasses import dataclass

from .lanes import FrequencyTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """A codec and its parameters for a tensor; hashable, the same for all chunks.

    `tables` has an entry per plane of the format (`codecs.planes`): its frequencies, or None where
    the plane is stored as it is. The codec `stored` has none.
    """

    codec: str
    tables: tuple[FrequencyTable | None, ...] = ()
    nibbles: bool = False  # planes of half a byte, of a RAW tensor
