"""How the array `code` of a tensor becomes numbers, before parameters scale them.

To add a decoder: a file here with a `Decoder`, and a line in `DECODERS`. It decodes each row of a
matrix by itself, in NumPy and in JAX. Its name, settings and arrays are a file format: FORMAT.md
has a paragraph for each.
"""

from .choices import CHOICES
from .decoder import Decoder
from .elementwise import ELEMENTWISE
from .levels import LEVELS

DECODERS: dict[str, Decoder] = {"elementwise": ELEMENTWISE, "levels": LEVELS, "choices": CHOICES}

__all__ = ["DECODERS", "Decoder"]
