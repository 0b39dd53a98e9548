"""Scales: how the parameters that blocks of weights share are found.

To add a way: a file here with a frozen dataclass that is a `Scales`, and a line in `SCALES`.
"""

from .rms_step import RmsStep
from .rules import Rules
from .scales import Scales

SCALES: dict[str, type[Scales]] = {"rules": Rules, "rms_step": RmsStep}

__all__ = ["SCALES", "RmsStep", "Rules", "Scales"]
