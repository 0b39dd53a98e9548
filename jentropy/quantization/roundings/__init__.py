"""Roundings: how codes are found, once the numbers that they may mean are fixed.

To add one: a file here with a frozen dataclass that is a `Rounding`, and a line in `ROUNDINGS`.
"""

from .learned import Learned
from .nearest import Nearest
from .rate_aware import RateAware
from .rounding import Rounding
from .sequential import Sequential
from .stochastic import Stochastic

ROUNDINGS: dict[str, type[Rounding]] = {
    "nearest": Nearest,
    "stochastic": Stochastic,
    "rate_aware": RateAware,
    "sequential": Sequential,
    "learned": Learned,
}

__all__ = ["ROUNDINGS", "Learned", "Nearest", "RateAware", "Rounding", "Sequential", "Stochastic"]
