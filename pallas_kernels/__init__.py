"""Kernels that run from compressed weights, imported as `jentropy.pallas_kernels`."""

from .abstract import abstract_weight
from .backends import default_backend
from .conversion import to_resident
from .decode.api import decode, take_rows
from .decode_matmul.api import matmul
from .layouts import LAYOUTS
from .resident import ResidentTensor

__all__ = [
    "LAYOUTS",
    "ResidentTensor",
    "abstract_weight",
    "decode",
    "default_backend",
    "matmul",
    "take_rows",
    "to_resident",
]
