"""What a step costs: CPU of this process and those it waited for, time, anonymous memory."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

STATUS = Path("/proc/self/status")


def cpu_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(told.ru_utime + told.ru_stime for told in both)


def anonymous_bytes() -> int:
    """Memory that no file is behind."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10


@contextmanager
def peak(every_s: float = 0.01) -> Iterator[Callable[[], int]]:
    """The most anonymous memory since it began, sampled."""
    most, done = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            most[0] = max(most[0], anonymous_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: most[0]
    finally:
        done.set()
        thread.join()


def told(name: str, run: Callable[[], Any]) -> Any:
    """Runs a step and prints what it cost."""
    began, cpu = time.monotonic(), cpu_seconds()
    with peak() as most:
        result = run()
        memory = most()
    print(
        f"{name:12} {cpu_seconds() - cpu:8.2f} CPU s {time.monotonic() - began:8.2f} s "
        f"{memory >> 20:6} MiB",
        flush=True,
    )
    return result


def write_safetensors(file: Path, tensors: dict[str, tuple[str, list[int]]], fill: Any) -> None:
    """Writes a file of tensors.

    Args:
      tensors: dtype and shape by name.
      fill: gives the bytes of a tensor by its number and how many they are, as parts.
    """
    import json

    bits = {"BF16": 16, "F32": 32, "U8": 8, "F16": 16}
    header, at, sizes = {}, 0, []
    for name, (dtype, shape) in tensors.items():
        sizes.append(int(np.prod(shape, dtype=np.int64)) * bits[dtype] // 8)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + sizes[-1]]}
        at += sizes[-1]
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for number, size in enumerate(sizes):
            for part in fill(number, size):
                stream.write(part)
