"""Kernels that run from compressed weights, imported as `jentropy.pallas_kernels`."""

from .decode.api import decode, take_rows
from .decode_matmul.api import matmul
from .resident import LAYOUTS, ResidentTensor, default_backend, to_resident

__all__ = [
    "LAYOUTS",
    "ResidentTensor",
    "decode",
    "default_backend",
    "matmul",
    "take_rows",
    "to_resident",
]
