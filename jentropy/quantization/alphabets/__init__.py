"""Alphabets: which numbers a code may mean.

To add one: a file here with a frozen dataclass that is an `Alphabet`, whose fields are its
settings, and a line in `ALPHABETS`; a recipe that uses it is then tested with all others. One whose
codes are numbers each by itself is an `Elementwise`, which gives a `Format` and leaves scales and
rounding to others; any other solves the whole `Problem`.
"""

from .alphabet import Alphabet
from .ball import Ball
from .best_of import BestOf
from .centroids import Centroids
from .codebooks import Codebooks
from .corrected import LowRankCorrected, ResidualColumns
from .e8 import E8
from .elementwise import Elementwise
from .integer import Integer
from .minifloat import Minifloat
from .mixed_tables import MixedTables
from .of_format import OfFormat
from .of_table import OfTable
from .sign_planes import Dual, Salient
from .sign_ranks import SignRanks
from .signs import Signs
from .super_blocks import SuperBlocks
from .trellis import Trellis
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
    "trellis": Trellis,
    "signs": Signs,
    "sign_ranks": SignRanks,
    "salient_signs": Salient,
    "dual_signs": Dual,
    "e8": E8,
    "residual_columns": ResidualColumns,
    "low_rank_corrected": LowRankCorrected,
    "codebooks": Codebooks,
    "ball": Ball,
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
    "Trellis",
    "Signs",
    "SignRanks",
    "Salient",
    "Dual",
    "E8",
    "ResidualColumns",
    "LowRankCorrected",
    "Codebooks",
    "Ball",
    "Uniform",
]
