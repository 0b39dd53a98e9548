"""Quantisers in one frame: transforms, alphabets, roundings, scales, prunings, allocations.

A `Recipe` is an entry of each of these tables; `RECIPES` are published methods, a line each, scored
by the bits that `compress` makes of them (`rates`) against what is lost (`distortions`). Whatever a
recipe gives is a `QuantizedTensor`, whose `Format` says all that `dequantize` needs.
"""

from .allocations import ALLOCATIONS
from .alphabets import ALPHABETS
from .prunings import PRUNINGS
from .quantizing import quantize_weight
from .recipe import Recipe
from .recipes import RECIPES
from .roundings import ROUNDINGS
from .scales import SCALES
from .sharing import quantize_weights
from .statistics import Statistics
from .transforms import TRANSFORMS

__all__ = [
    "ALLOCATIONS",
    "ALPHABETS",
    "PRUNINGS",
    "RECIPES",
    "ROUNDINGS",
    "SCALES",
    "TRANSFORMS",
    "Recipe",
    "Statistics",
    "quantize_weight",
    "quantize_weights",
]
