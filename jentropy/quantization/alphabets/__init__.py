"""Alphabets: which numbers a code may mean.

To add one: a file here with a frozen dataclass that is an `Alphabet`, whose fields are its
settings, and a line in `ALPHABETS`; a recipe that uses it is then tested with all others. One whose
codes are numbers each by itself is an `Elementwise`, which gives a `Format` and leaves scales and
rounding to others; any other solves the whole `Problem`.
"""

from .alphabet import Alphabet
from .best_of import BestOf
from .centroids import Centroids
from .elementwise import Elementwise
from .integer import Integer
from .minifloat import Minifloat
from .mixed_tables import MixedTables
from .of_format import OfFormat
from .of_table import OfTable
from .super_blocks import SuperBlocks
from .uniform import Uniform

ALPHABETS: dict[str, type[Alphabet]] = {
    "format": OfFormat,
    "integer": Integer,
    "minifloat": Minifloat,
    "table": OfTable,
    "super_blocks": SuperBlocks,
    "best_of": BestOf,
    "mixed_tables": MixedTables,
    "uniform": Uniform,
    "centroids": Centroids,
}

__all__ = [
    "ALPHABETS",
    "Alphabet",
    "BestOf",
    "Centroids",
    "Elementwise",
    "Integer",
    "Minifloat",
    "MixedTables",
    "OfFormat",
    "OfTable",
    "SuperBlocks",
    "Uniform",
]
