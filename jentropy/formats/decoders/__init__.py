"""How the array `code` of a tensor becomes numbers, before parameters scale them.

To add a decoder: a file here with a `Decoder`, and a line in `DECODERS`. It decodes a matrix,
in NumPy and in JAX. Its name, settings and arrays are a file format: FORMAT.md
has a paragraph for each.
"""

from .ball import BALL
from .choices import CHOICES
from .codebook import CODEBOOK
from .decoder import Decoder
from .e8 import E8
from .elementwise import ELEMENTWISE
from .levels import LEVELS
from .planes import PLANES
from .sign_ranks import SIGN_RANKS
from .trellis import TRELLIS

DECODERS: dict[str, Decoder] = {
    "elementwise": ELEMENTWISE,
    "levels": LEVELS,
    "choices": CHOICES,
    "trellis": TRELLIS,
    "e8": E8,
    "ball": BALL,
    "codebook": CODEBOOK,
    "planes": PLANES,
    "sign_ranks": SIGN_RANKS,
}

__all__ = ["DECODERS", "Decoder"]
