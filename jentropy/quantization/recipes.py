"""Published methods, each a line.

rtn         round to nearest, INT4 in groups of 128
ecsq        a uniform step, numbers that are worth their bits: Chou, Lookabaugh, Gray 1989
gptq        INT4 in groups of 128, column after column: arXiv 2210.17323
default     a uniform step, column after column, one slope over all tensors, entropy coded
"""

from __future__ import annotations

from jentropy.formats import INT4_GROUP

from .allocations import Slope
from .alphabets import OfFormat, Uniform
from .recipe import Recipe
from .roundings import RateAware, Sequential
from .scales import RmsStep

RECIPES: dict[str, Recipe] = {
    "rtn": Recipe(alphabet=OfFormat(number_format=INT4_GROUP)),
    "ecsq": Recipe(alphabet=Uniform(), scales=RmsStep(), rounding=RateAware()),
    "gptq": Recipe(alphabet=OfFormat(number_format=INT4_GROUP), rounding=Sequential()),
    "gptq-act-order": Recipe(
        alphabet=OfFormat(number_format=INT4_GROUP), rounding=Sequential(act_order=True)
    ),
    "default": Recipe(
        alphabet=Uniform(),
        scales=RmsStep(),
        rounding=Sequential(),
        allocation=Slope(),
    ),
}
