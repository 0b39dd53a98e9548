"""Allocations: how bits are shared out among tensors.

To add one: a file here with a frozen dataclass that is an `Allocation`, and a line in
`ALLOCATIONS`.
"""

from jentropy.quantization.recipe import Allocation, Share

from .by_role import ByRole
from .equal import Equal
from .knapsack import Knapsack
from .slope import Slope

ALLOCATIONS: dict[str, type[Allocation]] = {
    "equal": Equal,
    "slope": Slope,
    "knapsack": Knapsack,
    "by_role": ByRole,
}

__all__ = ["ALLOCATIONS", "Allocation", "ByRole", "Equal", "Knapsack", "Share", "Slope"]
