"""Prunings: which weights become 0.

To add one: a file here with a frozen dataclass that is a `Pruning`, and a line in `PRUNINGS`.
"""

from .pruning import Pruning

PRUNINGS: dict[str, type[Pruning]] = {}

__all__ = ["PRUNINGS", "Pruning"]
