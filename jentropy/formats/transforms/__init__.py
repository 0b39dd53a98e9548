"""What stays on a weight, and is undone once its codes are numbers and scaled.

To add a transform: a file here with a `Transform`, and a line in `TRANSFORMS`; the way forward is
in `quantization/transforms`. Its name, settings and arrays are a file format: FORMAT.md has a
paragraph for each.
"""

from .columns import COLUMNS
from .hadamard import HADAMARD
from .low_rank import LOW_RANK
from .outliers import OUTLIERS
from .permutation import PERMUTATION
from .residual_columns import RESIDUAL_COLUMNS
from .shift import SHIFT
from .transform import Transform

TRANSFORMS: dict[str, Transform] = {
    "columns": COLUMNS,
    "hadamard": HADAMARD,
    "permutation": PERMUTATION,
    "low_rank": LOW_RANK,
    "outliers": OUTLIERS,
    "residual_columns": RESIDUAL_COLUMNS,
    "shift": SHIFT,
}

__all__ = ["TRANSFORMS", "Transform"]
