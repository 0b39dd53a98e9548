"""Roundings: how codes are found, once the numbers that they may mean are fixed.

To add one: a file here with a frozen dataclass that is a `Rounding`, and a line in `ROUNDINGS`.
"""

from .nearest import Nearest
from .rounding import Rounding

ROUNDINGS: dict[str, type[Rounding]] = {"nearest": Nearest}

__all__ = ["ROUNDINGS", "Nearest", "Rounding"]
