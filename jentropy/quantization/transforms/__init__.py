"""Transforms: what is done to a weight before it is quantised, and undone by `dequantize`.

To add one: a file here with a frozen dataclass that is a `Transform`, and a line in `TRANSFORMS`;
the way back in `formats/transforms`.
"""

from .transform import Transform, Transformed

TRANSFORMS: dict[str, type[Transform]] = {}

__all__ = ["TRANSFORMS", "Transform", "Transformed"]
