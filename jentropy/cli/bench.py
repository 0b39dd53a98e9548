"""`jentropy bench`."""

from __future__ import annotations

import argparse

import jax

import jentropy
from jentropy import bench, report
from jentropy.errors import InputError

from .arguments import JSON, Arguments, positive
from .console import print_device_note, print_table, write_json
from .quantize import recipe

HELP = "time codecs and kernels on this device, against what you would have otherwise"
RATES = "rate-distortion"
# Arguments that not every suite has.
OF_SUITES = {
    "tune": ("matmul",),
    "png": ("archive", RATES),
    "recipes": (RATES,),
    "sequences": (RATES,),
    "sums": (RATES,),
}
OPTIONS = ("recipes", "sequences", "sums")  # that a suite's `run` is given
PICTURES = {"archive": "write_speeds", RATES: "write_rate_distortion"}


def names(text: str) -> tuple[str, ...]:
    """Names of recipes, with commas between them."""
    return tuple(map(recipe, text.split(",")))


ARGUMENTS: Arguments = {
    "--suite": {
        "choices": tuple(bench.SUITES),
        "default": "archive",
        "help": "default: archive",
    },
    "--source": {
        "metavar": "SRC",
        "help": "checkpoint to measure on; default: the bundled model",
    },
    "--png": {
        "metavar": "F",
        "help": "suite archive: draw speed against bits per weight (or .svg); suite "
        "rate-distortion: bits against what is lost",
    },
    "--tune": {
        "action": "store_true",
        "help": "suite matmul on a Hopper GPU: find and keep the best configurations",
    },
    "--recipes": {
        "type": names,
        "default": (),
        "metavar": "NAME,NAME,...",
        "help": "suite rate-distortion: these; default: all",
    },
    "--sequences": {
        "type": positive,
        "metavar": "N",
        "help": "suite rate-distortion: that score the model; default: 64",
    },
    "--sums": {
        "metavar": "F",
        "help": "suite rate-distortion: keep the calibration's sums here, and take them up",
    },
    **JSON,
}


def run(arguments: argparse.Namespace) -> int:
    """Runs the suite. One that yields rows prints and writes after each: they take minutes."""
    for name, suites in OF_SUITES.items():
        if getattr(arguments, name) and arguments.suite not in suites:
            expected = f"suite {' or '.join(suites)}"
            raise InputError(f"--{name}", expected=expected, found=arguments.suite)
    on_kernels, prints = arguments.suite == "matmul", arguments.json != "-"
    if on_kernels:
        print_device_note()
    source = arguments.source or jentropy.models.BUNDLED
    given = {name: getattr(arguments, name) for name in OPTIONS}
    options = {name: value for name, value in given.items() if value}
    if arguments.png:
        report.figures.new_figure(1, 1)  # where Matplotlib is missing, it is said at once
    suite = bench.SUITES[arguments.suite]
    rows = bench.tuning.run() if arguments.tune else suite.run(source, **options)
    live = prints and not isinstance(rows, list)
    results = []
    for result in rows:
        results.append(result)
        if live:
            print(_line(result), flush=True)
            _write(arguments, results)
    if not live:
        _write(arguments, results)
        if prints:
            print_table(f"{arguments.suite} on {jax.devices()[0].device_kind}", *_table(results))
    if on_kernels and prints and jax.default_backend() == "cpu":
        print("CPU: the reference backend, at small shapes")
    if arguments.png:
        draw = getattr(report, PICTURES[arguments.suite])
        draw({result.name: result.figures for result in results}, arguments.png)
    return 0


def _write(arguments: argparse.Namespace, results: list[bench.Result]) -> None:
    if arguments.json:
        rows = [result.to_json() for result in results]
        write_json(
            arguments.json, {"suite": arguments.suite, **bench.environment(), "results": rows}
        )


def _line(result: bench.Result) -> str:
    figures = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.figures.items())
    return f"{result.name}: {', '.join(figures)}"


def _table(results: list[bench.Result]) -> tuple[list[str], list[list[str]]]:
    """Head and rows."""
    names = list(dict.fromkeys(name for result in results for name in result.figures))
    rows = [
        [r.name, *(f"{r.figures[n]:.3f}" if n in r.figures else "" for n in names)] for r in results
    ]
    return ["", *(name.replace("_", " ") for name in names)], rows
