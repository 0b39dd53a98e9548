"""The parts of `hopper.py`, each of which runs in a process of its own.

A part is a function that yields cases: a name, and a function that yields findings, a name and
figures each. To add a kernel: its cases in `right` and `times`; to add a part: a function there,
its line in `__main__.PARTS`, and the seconds that it may take in `hopper.PARTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Finding = tuple[str, dict[str, Any]]
Case = tuple[str, Callable[[], Iterable[Finding]]]
