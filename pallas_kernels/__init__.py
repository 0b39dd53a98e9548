"""Kernels that run from compressed weights, imported as `jentropy.pallas_kernels`."""

from .api import decode, matmul, take_rows
from .backends import default_backend
from .conversion import to_resident
from .dense_layer import DenseLayer, layer_of
from .grouped import grouped_matmul
from .layouts import LAYOUTS
from .resident import ResidentTensor
from .sharded import ShardedTensor
from .variants import abstract_weight

__all__ = [
    "DenseLayer",
    "LAYOUTS",
    "ResidentTensor",
    "ShardedTensor",
    "abstract_weight",
    "decode",
    "default_backend",
    "grouped_matmul",
    "layer_of",
    "matmul",
    "take_rows",
    "to_resident",
]
