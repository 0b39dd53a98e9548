"""What stays on a weight, and is undone once its codes are numbers and scaled.

To add a transform: a file here with a `Transform`, and a line in `TRANSFORMS`; the way forward is
in `quantization/transforms`. Its name, settings and arrays are a file format: FORMAT.md has a
paragraph for each.
"""

from .columns import COLUMNS
from .transform import Transform

TRANSFORMS: dict[str, Transform] = {"columns": COLUMNS}

__all__ = ["TRANSFORMS", "Transform"]
