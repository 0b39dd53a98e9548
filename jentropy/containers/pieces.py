"""The chunks of an archived tensor, cut out of its payload."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import jax
import numpy as np

from jentropy import modes
from jentropy.errors import InputError

from . import coder
from .tensor import CompressedTensor


def coded_chunks(
    name: str,
    tensor: CompressedTensor,
    wanted: Container[int] | None = None,
    *,
    whole: bool = False,
) -> Iterator[coder.Coded]:
    """The chunks of a tensor, for `coder.decode`.

    Args:
      wanted: numbers of the chunks; None: all.
      whole: whether the codes go to one array, for `coder.assemble`.

    Raises:
      InputError: a payload that is not what the header tells of.
    """
    if any(isinstance(piece, jax.core.Tracer) for piece in tensor.payload):
        raise modes.traced().at(tensor=name or None)
    header = tensor.header
    pieces = [np.asarray(piece) for piece in tensor.payload]
    sound = all(piece.dtype == np.uint8 and piece.ndim == 1 for piece in pieces)
    room = coder.room(header) if whole else None
    piece, at = -1, 0
    for number, (chunk, span) in enumerate(zip(header.chunks, header.spans(), strict=True)):
        while sound and (piece < 0 or at == pieces[piece].size) and piece + 1 < len(pieces):
            piece, at = piece + 1, 0
        if not sound or piece < 0 or at + chunk.bytes > pieces[piece].size:
            raise InputError(
                "payload",
                tensor=name,
                expected=f"uint8 arrays of {header.payload_bytes} bytes, chunks in one piece",
                found=", ".join(f"{p.dtype}{list(p.shape)}" for p in pieces) or "none",
            )
        if wanted is None or number in wanted:
            part = pieces[piece][at : at + chunk.bytes]
            file = _file_of(pieces[piece])
            yield coder.Coded(name, chunk, part, span, file, room)
        at += chunk.bytes


def _file_of(piece: Any) -> Any:
    """The file that an array is a map of, for messages; None if it is none."""
    while piece is not None and not isinstance(piece, np.memmap):
        piece = getattr(piece, "base", None)
    return None if piece is None else piece.filename
