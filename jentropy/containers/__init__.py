"""Archived tensors: `CompressedTensor`, a pytree node, and the coder between it and arrays.

FORMAT.md in this folder describes the bytes.
"""

from .slices import decompress_slice
from .tensor import Chunk, CompressedTensor, TensorHeader, is_compressed
from .trees import compress, decompress

__all__ = [
    "Chunk",
    "CompressedTensor",
    "TensorHeader",
    "compress",
    "decompress",
    "decompress_slice",
    "is_compressed",
]
