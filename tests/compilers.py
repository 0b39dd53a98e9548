"""What tests that compile for devices that are not there share.

A compiler reads its environment once: each target compiles in processes of its own, which are the
test's file or the command that users have. By default what differs is compiled once, by sampling;
JENTROPY_AOT=all compiles every plan and every format with a budget.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jentropy.pallas_kernels.profiling import compiling

ROOT = Path(__file__).resolve().parent.parent

EVERYTHING = os.environ.get("JENTROPY_AOT") == "all"
PROCESSES, SECONDS = 2, 6000 if EVERYTHING else 1500  # also where others compute beside them


def needs(target: str) -> pytest.MarkDecorator:
    """Skips where the compiler of a target is not installed."""
    missing = compiling.missing(target)
    reason = f"not installed: {', '.join(missing)}: pip install 'jentropy[aot]'"
    return pytest.mark.skipif(bool(missing), reason=reason)


def outputs(*commands: tuple[str, ...]) -> list[Any]:
    """What Python programs print as JSON."""

    def run(command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    with ThreadPoolExecutor(PROCESSES) as pool:
        done = list(pool.map(run, commands))
    for result in done:
        assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(result.stdout) for result in done]
