"""Dialect `gguf`: llama.cpp's blocks, see `gguf_blocks`. The names of tensors are the file's."""

from __future__ import annotations

from jentropy.checkpoints.gguf_blocks import PACKINGS
from jentropy.errors import CorruptError

from .weight import Contents, Field, StoredArray, Tensor, assemble


def claims(contents: Contents) -> bool:
    """A GGUF file."""
    return any(array.packing for array in contents.arrays.values())


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """An array of blocks of a type in PACKINGS."""
    packing = PACKINGS.get(array.packing)
    if packing is None:
        return None
    *stack, row = array.shape
    if row % packing.bytes:
        raise CorruptError(
            f"{array.packing} row",
            file=array.file,
            tensor=array.name,
            expected=f"a multiple of {packing.bytes} bytes",
            found=row,
        )
    shape = (*stack, row // packing.bytes * packing.weights)
    kind = array.packing
    stored = {key: (array, Field(packing=kind, key=key)) for key in packing.extract}
    return assemble(array.name, packing.number_format, shape, stored, f"type {kind}")
