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
    together: bool = False,
) -> Iterator[coder.Coded]:
    """The chunks of a tensor, for `coder.decode`.

    Args:
      wanted: which chunks; None: all.
      together: whether the codes go to one array, for `coder.assemble`.

    Raises:
      InputError: a payload that is not what the header tells of.

    Example:
      >>> import jentropy
      >>> packed = jentropy.compress(np.zeros(5, np.int32))
      >>> [item.chunk.weights for item in coded_chunks("w", packed)]
      [5]
    """
    if any(isinstance(part, jax.core.Tracer) for part in tensor.payload):
        raise modes.traced().at(tensor=name or None)
    header = tensor.header
    parts = [np.asarray(part) for part in tensor.payload]
    sound = all(part.dtype == np.uint8 and part.ndim == 1 for part in parts)
    left = list(parts)
    codes = coder.room(header) if together else None
    below = None if tensor.base is None else coded_chunks(name, tensor.base)
    if header.delta and below is None:
        raise InputError(
            "base", tensor=name, expected="the tensor that its codes are told by", found="none"
        )
    for i, (chunk, span) in enumerate(zip(header.chunks, header.spans(), strict=True)):
        while sound and len(left) > 1 and not left[0].size:
            del left[0]
        if not sound or not left or chunk.bytes > left[0].size:
            raise InputError(
                "payload",
                tensor=name,
                expected=f"uint8 arrays of {header.payload_bytes} bytes, each of whole chunks",
                found=", ".join(f"{p.dtype}{list(p.shape)}" for p in parts) or "none",
            )
        payload, left[0] = left[0][: chunk.bytes], left[0][chunk.bytes :]
        base = None if below is None else next(below, None)
        if wanted is None or i in wanted:
            yield coder.Coded(
                name=name,
                chunk=chunk,
                payload=payload,
                span=span,
                file=_file_of(payload),
                tensor=codes,
                delta=header.difference,
                base=base,
            )


def _file_of(array: Any) -> Any:
    """The file that an array is a map of, for messages; None if it is none."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return None if array is None else array.filename
