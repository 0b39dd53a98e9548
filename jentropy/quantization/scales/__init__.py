"""Scales: how the parameters that blocks of weights share are found.

To add a way: a file here with a frozen dataclass that is a `Scales`, and a line in `SCALES`.
"""

from .learned_clipping import LearnedClipping
from .rms_step import RmsStep
from .rules import Rules
from .scales import Scales
from .search import Search

SCALES: dict[str, type[Scales]] = {
    "rules": Rules,
    "rms_step": RmsStep,
    "search": Search,
    "learned_clipping": LearnedClipping,
}

__all__ = ["SCALES", "LearnedClipping", "RmsStep", "Rules", "Scales", "Search"]
