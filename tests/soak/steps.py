"""Steps of a process that writes, at each of which it can be killed.

A step is a payload added, or what Python does to a name in a stage or a destination: the moments
between two of which nothing that stays is changed but bytes of files.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.checkpoints import writer

EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"}  # audited
WRITTEN = re.compile(r"/\.?dst")  # destinations and stages


def taken(folder: Path, last: int | str = -1, delay_s: float = 0) -> list[str]:
    """Steps of this process from now on; it is killed (SIGKILL) some time after one of them.

    Args:
      folder: in which, at any depth, `dst` is written.
      last: the step by its number, or how what it does begins; it is printed. -1: none.

    Returns:
      What they did, which grows.
    """
    done, root = list[str](), str(folder)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def step(what: str) -> None:
        done.append(what)
        if what.startswith(last) if isinstance(last, str) else len(done) == last + 1:
            print("killed at", what, f"+ {delay_s:.2f} s" if delay_s else "", flush=True)
            threading.Timer(delay_s, die).start() if delay_s else die()

    def watch(event: str, told: tuple[Any, ...]) -> None:
        if event in EVENTS and isinstance(told[0], str | Path):
            path = os.fspath(told[0])
            if path.startswith(root) and WRITTEN.search(path, len(root)):
                step(f"{event} {path.removeprefix(root)}")

    append = writer.Writer.append

    def counted(self: writer.Writer, payload: np.ndarray) -> tuple[int, int]:
        step("payload")
        return append(self, payload)

    writer.Writer.append = counted  # type: ignore[method-assign]
    sys.addaudithook(watch)
    return done
