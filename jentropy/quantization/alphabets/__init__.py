"""Alphabets: which numbers a code may mean.

To add one: a file here with a frozen dataclass that is an `Alphabet`, whose fields are its
settings, and a line in `ALPHABETS`; a recipe that uses it is then tested with all others. One whose
codes are numbers each by itself is an `Elementwise`, which gives a `Format` and leaves scales and
rounding to others; any other solves the whole `Problem`.
"""

from .alphabet import Alphabet
from .elementwise import Elementwise
from .of_format import OfFormat
from .uniform import Uniform

ALPHABETS: dict[str, type[Alphabet]] = {"format": OfFormat, "uniform": Uniform}

__all__ = ["ALPHABETS", "Alphabet", "Elementwise", "OfFormat", "Uniform"]
