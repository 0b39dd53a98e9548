"""Benchmarks: what `jentropy bench` measures, against what a user would have otherwise.

A suite is a module with `run(source) -> list of Result`; to add one, write it and give it a line in
`SUITES`.
"""

from __future__ import annotations

from types import ModuleType

from . import analyze, archive, formats, load, matmul, rate_distortion, tuning
from .measure import Result, environment

SUITES: dict[str, ModuleType] = {
    "archive": archive,
    "formats": formats,
    "load": load,
    "matmul": matmul,
    "analyze": analyze,
    "rate-distortion": rate_distortion,
}

__all__ = ["SUITES", "Result", "environment", "tuning"]
