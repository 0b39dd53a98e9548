"""Transforms: what is done to a weight before it is quantised, and undone by `dequantize`.

To add one: a file here with a frozen dataclass that is a `Transform`, and a line in `TRANSFORMS`;
the way back in `formats/transforms`.
"""

from .centred import Centred
from .column_scales import Balanced, Capped, ColumnScales, Searched, Smooth
from .hadamard import Hadamard
from .learned_scales import LearnedScales
from .low_rank import LowRank
from .outliers import Outliers
from .sorted_columns import SortedColumns
from .transform import Transform, Transformed

TRANSFORMS: dict[str, type[Transform]] = {
    "hadamard": Hadamard,
    "smooth": Smooth,
    "searched": Searched,
    "capped": Capped,
    "learned_scales": LearnedScales,
    "balanced": Balanced,
    "centred": Centred,
    "sorted_columns": SortedColumns,
    "low_rank": LowRank,
    "outliers": Outliers,
}

__all__ = [
    "TRANSFORMS",
    "Balanced",
    "Capped",
    "Centred",
    "ColumnScales",
    "Hadamard",
    "LearnedScales",
    "LowRank",
    "Outliers",
    "Searched",
    "Smooth",
    "SortedColumns",
    "Transform",
    "Transformed",
]
