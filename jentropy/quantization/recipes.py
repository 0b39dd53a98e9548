"""Published methods, each a line.

rtn         round to nearest, INT4 in groups of 128
"""

from __future__ import annotations

from jentropy.formats import INT4_GROUP

from .alphabets import OfFormat
from .recipe import Recipe

RECIPES: dict[str, Recipe] = {
    "rtn": Recipe(alphabet=OfFormat(number_format=INT4_GROUP)),
}
