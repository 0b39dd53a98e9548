"""Scales: how the parameters that blocks of weights share are found.

To add a way: a file here with a frozen dataclass that is a `Scales`, and a line in `SCALES`.
"""

from .absolute_mean import AbsoluteMean
from .learned_clipping import LearnedClipping
from .least_squares import LeastSquares
from .rms_step import RmsStep
from .rules import Rules
from .salient import SalientGroups
from .scales import Scales
from .search import Search

SCALES: dict[str, type[Scales]] = {
    "rules": Rules,
    "rms_step": RmsStep,
    "search": Search,
    "least_squares": LeastSquares,
    "salient": SalientGroups,
    "learned_clipping": LearnedClipping,
    "absolute_mean": AbsoluteMean,
}

__all__ = [
    "SCALES",
    "AbsoluteMean",
    "LearnedClipping",
    "LeastSquares",
    "RmsStep",
    "Rules",
    "SalientGroups",
    "Scales",
    "Search",
]
