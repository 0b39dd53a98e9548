"""Everything that a Hopper GPU has to tell, in one run of under nine minutes.

    python3 benchmarks/hopper.py OUT [--seconds 540] [--parts right,times:90] [--dry]

Every finding is a line of JSON in OUT/results.jsonl as soon as it is known, and a short line on
standard output. A part is a function of `hopper_parts` that yields findings; it runs in a process
and a box of time of its own, so that a kernel that hangs costs its box and nothing else. Nothing
has to be installed but JAX and what jentropy imports. `--dry` runs every part on any machine, with
shapes of a tile or two: what checks numbers in interpret mode, what takes times in plain JAX.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NO_GRAPHS = "--xla_gpu_enable_command_buffer="  # which hide kernels from CUPTI
# In order of value; the most seconds of each, which what is left of the run caps.
PARTS = {
    "environment": 60,
    "right": 120,
    "formats_right": 120,
    "groups_right": 60,
    "ceilings": 25,
    "times": 170,
    "formats_times": 150,
    "goals": 20,
    "groups_times": 60,
    "kernels": 60,
    "decoding": 40,
    "sweep": 60,
    "torch": 25,
    "tune": 200,
}


def site() -> str:
    """The three top folders as one package, as an installation puts them."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(ROOT / "jentropy", folder / "jentropy")
    for name in ("pallas_kernels", "models"):
        shutil.copytree(ROOT / name, folder / "jentropy" / name)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    environment = {
        **os.environ,
        "HOPPER_START": str(start),
        "PYTHONPATH": os.pathsep.join([site(), os.environ.get("PYTHONPATH", "")]),
        "PYTHONSAFEPATH": "1",  # the checkout's jentropy lacks two folders
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".85",
    }
    if arguments.dry:
        environment |= {"JAX_PLATFORMS": "cpu", "NPROC": "8", "HOPPER_DRY": "1"}
    wanted = dict(part.partition(":")[::2] for part in arguments.parts.split(","))
    for part, usual in PARTS.items():
        left = arguments.seconds - (time.time() - start)
        if part not in wanted or left < 10:
            continue
        command = [sys.executable, Path(__file__).with_name("hopper_parts.py"), arguments.out, part]
        flags = {"XLA_FLAGS": NO_GRAPHS} if part == "kernels" else {}
        box = left if arguments.dry else usual
        most = min(float(wanted[part] or box), left)
        began, code = time.time(), "out of time"
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, env=environment | flags, timeout=most, check=False)
            code = str(done.returncode)
        end = {"seconds": time.time() - start, "part": part, "what": "ended", "code": code}
        with (arguments.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(end | {"took": time.time() - began}) + "\n")


if __name__ == "__main__":
    main()
