"""Kernels that run from compressed weights, imported as `jentropy.pallas_kernels`."""

from .api import decode, matmul, take_rows
from .backends import default_backend
from .conversion import to_resident
from .dense_layer import DenseLayer, layer_of
from .folding import resident_array
from .general import dot_general, einsum
from .grouped import grouped_matmul
from .layouts import LAYOUTS
from .resident import ResidentTensor
from .resident_array import ResidentArray
from .sharded import ShardedTensor
from .variants import abstract_weight

__all__ = [
    "DenseLayer",
    "LAYOUTS",
    "ResidentArray",
    "ResidentTensor",
    "ShardedTensor",
    "abstract_weight",
    "decode",
    "default_backend",
    "dot_general",
    "einsum",
    "grouped_matmul",
    "layer_of",
    "matmul",
    "resident_array",
    "take_rows",
    "to_resident",
]
