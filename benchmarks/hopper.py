"""Everything that a Hopper GPU has to tell, in one run of under nine minutes.

    python3 benchmarks/hopper.py OUT [--seconds 540] [--parts right,times:90] [--dry]

Every finding is a line of JSON in OUT/results.jsonl as soon as it is known, and a short line on
standard output; what was aimed at and what was wrong stand at the end, and after each part with
times. A part is cases one after the other (see `hopper_parts`) in a process and a box of time of
its own. A case that breaks the process, or hangs, costs itself: the part goes on after it in
another process. Nothing has to be installed but JAX and what jentropy imports. `--dry` runs every
part on any machine, with shapes of a tile or two: what checks numbers in interpret mode, what takes
times in plain JAX.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NO_GRAPHS = "--xla_gpu_enable_command_buffer="  # which hide kernels from CUPTI
# In order of value; the most seconds of each, which what is left of the run caps.
PARTS = {
    "environment": 60,
    "right": 100,
    "formats_right": 80,
    "ceilings": 25,
    "times": 120,
    "few_rows": 120,
    "many_rows": 150,
    "groups_right": 50,
    "groups_times": 60,
    "kernels": 60,
    "decoding": 40,
    "other_formats_right": 80,
    "other_formats": 90,
    "sweep": 60,
    "torch": 25,
    "tune": 250,
}
TIMED = ("times", "few_rows", "many_rows")
STARTS = 4  # of a part: the first, and after cases that broke it
LEAST_SECONDS = 10  # that a part, or the rest of one, is started for
# What was aimed at, how many times as fast as the dense product, in the geometric mean of layers.
AIMS = {
    16: {"BF16": 1.20, "FP8 row": 1.65, "MXFP4": 2.7, "NVFP4": 2.5, "INT4 g128": 2.8},
    **{64: 0.8, 256: 0.7, 4096: 0.9},
}
FEW_ROWS, LEAST = 16, 0.98  # up to so many rows of x no layer is to be slower than this


def site(folder: Path) -> str:
    """The three top folders as one package, as an installation puts them."""
    shutil.copytree(ROOT / "jentropy", folder / "jentropy")
    for name in ("pallas_kernels", "models"):
        shutil.copytree(ROOT / name, folder / "jentropy" / name)
    return str(folder)


class Run:
    """One run: what is written, and what is left of its time."""

    def __init__(self, out: Path, seconds: float, dry: bool, scratch: Path) -> None:
        self.start, self.seconds, self.dry = time.time(), seconds, dry
        self.out, self.begun = out, scratch / "begun"
        paths = site(scratch / "site"), str(HERE), os.environ.get("PYTHONPATH", "")
        self.environment = {
            **os.environ,
            "HOPPER_START": str(self.start),
            "HOPPER_BEGUN": str(self.begun),  # how many cases of a part were
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONSAFEPATH": "1",  # the checkout's jentropy lacks two folders
            "XLA_PYTHON_CLIENT_MEM_FRACTION": ".85",
        }
        if dry:
            self.environment |= {"JAX_PLATFORMS": "cpu", "NPROC": "8", "HOPPER_DRY": "1"}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.time() - self.start)

    def say(self, part: str, what: str, figures: dict[str, Any]) -> None:
        """Writes a finding, as the parts do."""
        seconds = round(time.time() - self.start, 1)
        line = json.dumps({"seconds": seconds, "part": part, "what": what, **figures})
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def part(self, name: str, box: float) -> None:
        """Runs a part, again after each case that broke it."""
        end = time.time() + min(box, self.left)
        flags = {"XLA_FLAGS": NO_GRAPHS} if name == "kernels" else {}
        self.begun.write_text("0")
        for start in range(STARTS):
            began, seconds = time.time(), end - time.time()
            if start and seconds < LEAST_SECONDS:
                return
            command = [sys.executable, "-m", "hopper_parts", self.out, name, self.begun.read_text()]
            try:
                done = subprocess.run(
                    command, env=self.environment | flags, timeout=seconds, check=False
                )
                code = str(done.returncode)
            except subprocess.TimeoutExpired:
                code = "out of time"
            figures = {"code": code, "cases": int(self.begun.read_text())}
            self.say(name, "ended", figures | {"took": round(time.time() - began, 1)})
            if code in ("0", "out of time"):
                return

    def summary(self) -> None:
        """Says what came of what was aimed at, and what was not right."""
        lines = [json.loads(line) for line in (self.out / "results.jsonl").open()]
        for what, figures in reached(lines):
            self.say("summary", what, figures)
        wrong = [
            f"{line['part']}: {line['what']}"
            for line in lines
            if line.get("right") is False or line["what"].startswith("FAILED")
        ]
        self.say("summary", "wrong or failed", {"count": len(wrong), "findings": wrong})


def reached(lines: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """How much faster products were than dense ones, by format and rows of x, beside the aims."""
    found: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
    for line in lines:
        if line["part"] in TIMED and "speedup" in line:
            found[line["m"], line["format"]][line["layer"]] = line["speedup"]
    made = []
    for (m, name), speedups in sorted(found.items()):
        aim = AIMS.get(m)
        figures = {
            "layers": len(speedups),
            "mean": round(statistics.geometric_mean(speedups.values()), 3),
            "aim": aim.get(name) if isinstance(aim, dict) else aim,
            "least": round(min(speedups.values()), 3),
            "least_aim": LEAST if m <= FEW_ROWS else None,
            "least_layer": min(speedups, key=speedups.__getitem__),
        }
        made.append((f"{name} M={m}", figures))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    wanted = dict(part.partition(":")[::2] for part in arguments.parts.split(","))
    if unknown := sorted(wanted.keys() - PARTS.keys()):
        parser.error(f"no parts: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(arguments.out, arguments.seconds, arguments.dry, Path(scratch))
        for name, usual in PARTS.items():
            if name in wanted and run.left >= LEAST_SECONDS:
                run.part(name, float(wanted[name] or (run.left if arguments.dry else usual)))
                if name in TIMED:
                    run.summary()
        run.summary()


if __name__ == "__main__":
    main()
