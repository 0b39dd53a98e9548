"""Prunings: which weights become 0.

To add one: a file here with a frozen dataclass that is a `Pruning`, and a line in `PRUNINGS`.
"""

from .magnitude import Magnitude, Wanda
from .pruning import Pruning
from .sparse_gpt import SparseGPT

PRUNINGS: dict[str, type[Pruning]] = {
    "magnitude": Magnitude,
    "wanda": Wanda,
    "sparsegpt": SparseGPT,
}

__all__ = ["PRUNINGS", "Magnitude", "Pruning", "SparseGPT", "Wanda"]
