"""`python -m hopper_parts OUT PART SKIP`: the cases of a part after the first SKIP."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jentropy
from jentropy import bench, jax_internals
from jentropy.bench import matmul, measure, tuning
from jentropy.pallas_kernels import backends, reference, targets, to_resident

from . import Case, Finding, right, times
from .weights import DRY, LAYERS

START = float(os.environ["HOPPER_START"])
BEGUN = Path(os.environ["HOPPER_BEGUN"])
CASE_SECONDS = 75  # after which a case hangs: the process ends, and another goes on after it


def environment() -> Iterator[Case]:
    """The machine, the versions, and whether the kernels work at all."""
    yield "machine", _machine
    if not DRY:
        yield "trouble", _trouble


def _machine() -> Iterator[Finding]:
    query = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
    for command in (f"nvidia-smi --query-gpu={query} --format=csv,noheader", "ptxas --version"):
        if shutil.which(command.split()[0]):
            run = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            yield command.split()[0], {"text": (run.stdout + run.stderr).strip()[-200:]}
    yield "environment", bench.environment()
    yield "device", {"capability": str(getattr(jax.devices()[0], "compute_capability", None))}


def _trouble() -> Iterator[Finding]:
    began = time.time()
    trouble = backends.trouble("gpu")
    figures = {"text": trouble or "none", "took": time.time() - began, "right": not trouble}
    yield "trouble", figures


PARTS: dict[str, Callable[..., Iterator[Case]]] = {
    "environment": environment,
    "right": right.right,
    "formats_right": right.formats_right,
    "other_formats_right": right.other_formats_right,
    "groups_right": right.groups_right,
    "decoding": right.decoding,
    "ceilings": times.ceilings,
    "times": times.times,
    "few_rows": times.few_rows,
    "many_rows": times.many_rows,
    "other_formats": times.other_formats,
    "groups_times": times.groups_times,
    "kernels": times.kernels,
    "sweep": times.sweep,
    "tune": times.tune,
    "torch": times.torch,
}


def make_dry() -> None:
    """Few multiprocessors for the interpreter, small layers, plain JAX where times are taken."""
    few = replace(targets.GPUS["h200"], multiprocessors=2)
    targets.current_gpu = lambda: few
    times.dense_of = partial(reference.decode, dtype=jnp.bfloat16)
    times.timed_product = lambda x, w: matmul.dense_product(x, times.dense_of(w))
    times.timed_groups = lambda x, w, sizes: jentropy.grouped_matmul(
        x, times.dense_of(w), sizes, transpose_w=True
    )
    tuning.TUNED_ROWS, tuning.CROSSOVERS = (16,), (32,)
    tuning.default_backend = lambda: "gpu"
    tuning.by = lambda plan: times.timed_product
    jentropy.to_resident = partial(to_resident, backend="gpu")
    matmul.MOST_LAYERS, measure.REPEATS = 2, 1
    matmul.SHAPES.clear()
    matmul.SHAPES.update(LAYERS)


def say(out: Path, part: str, what: str, figures: dict[str, Any]) -> None:
    """Writes a finding."""
    short = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figures.items()}
    seconds = round(time.time() - START, 1)
    line = json.dumps({"seconds": seconds, "part": part, "what": what, **short})
    with (out / "results.jsonl").open("a") as file:
        file.write(line + "\n")
    told = " ".join(f"{k}={v}" for k, v in short.items())
    print(f"[{seconds:5.0f}] {part}: {what}: {told:.300}", flush=True)


def main(out: Path, part: str, skip: int) -> int:
    """Runs cases of a part; returns 1 at the first that fails, which may have broken the GPU."""
    cases = PARTS[part](out) if part == "tune" else PARTS[part]()
    for number, (name, run) in enumerate(itertools.islice(cases, skip, None), start=skip + 1):
        BEGUN.write_text(str(number))
        if not DRY and part != "tune":
            signal.alarm(CASE_SECONDS)  # no handler: it ends the process wherever that waits
        try:
            for what, figures in run():
                say(out, part, what, figures)
        except Exception as error:
            trace = traceback.format_exc()[-1500:]
            text = f"{type(error).__name__}: {error}"[:500]
            say(out, part, f"FAILED {name}", {"error": text, "at": trace})
            return 1
    signal.alarm(0)
    return 0


if __name__ == "__main__":
    arguments = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if DRY:
        make_dry()
        with jax_internals.gpu_interpreter_compiles_once():
            sys.exit(main(*arguments))
    sys.exit(main(*arguments))
