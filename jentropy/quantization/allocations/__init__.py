"""Allocations: how bits are shared out among tensors.

To add one: a file here with a frozen dataclass that is an `Allocation`, and a line in
`ALLOCATIONS`.
"""

from jentropy.quantization.recipe import Allocation, Share

from .equal import Equal
from .slope import Slope

ALLOCATIONS: dict[str, type[Allocation]] = {"equal": Equal, "slope": Slope}

__all__ = ["ALLOCATIONS", "Allocation", "Equal", "Share", "Slope"]
