"""`jentropy bench`."""

from __future__ import annotations

import argparse
from typing import Any

import jax

import jentropy
from jentropy import bench, report
from jentropy.errors import InputError

from .console import add_shared, print_device_note, print_table, write_json

HELP = "time codecs and kernels on this device, against what you would have otherwise"
OF_SUITE = {"tune": "matmul", "png": "archive"}  # arguments of one suite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, and where the figures go."""
    parser.add_argument("--suite", choices=tuple(bench.SUITES), default="archive")
    parser.add_argument(
        "--source", metavar="SRC", help="checkpoint to measure on; default: the bundled model"
    )
    parser.add_argument(
        "--png", metavar="F", help="suite archive: draw speed against bits per weight (or .svg)"
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="suite matmul on a Hopper GPU: find and keep the best configurations",
    )
    add_shared(parser, "--json")


def run(arguments: argparse.Namespace) -> int:
    """Runs the suite. One that yields rows prints and writes after each: they take minutes."""
    for name, suite in OF_SUITE.items():
        if getattr(arguments, name) and arguments.suite != suite:
            raise InputError(f"--{name}", expected=f"suite {suite}", found=arguments.suite)
    prints = arguments.json != "-"
    if arguments.suite == "matmul":
        print_device_note()
    source = arguments.source or jentropy.models.BUNDLED
    rows = bench.tuning.run() if arguments.tune else bench.SUITES[arguments.suite].run(source)
    live = prints and not isinstance(rows, list)
    content: dict[str, Any] = {
        "suite": arguments.suite,
        **bench.environment(),
        "results": [],
    }
    results = []
    for result in rows:
        results.append(result)
        content["results"].append(result.to_json())
        if live:
            print(_line(result), flush=True)
            if arguments.json:
                write_json(arguments.json, content)
    if prints and not live:
        _print(f"{arguments.suite} on {content['device']}", results)
    if arguments.json and not live:
        write_json(arguments.json, content)
    if arguments.suite == "matmul" and jax.default_backend() == "cpu" and prints:
        print("CPU: the reference backend, at small shapes")
    if arguments.png:
        report.write_speeds({result.name: result.figures for result in results}, arguments.png)
    return 0


def _line(result: bench.Result) -> str:
    figures = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.figures.items())
    return f"{result.name}: {', '.join(figures)}"


def _print(title: str, results: list[bench.Result]) -> None:
    names = list(dict.fromkeys(name for result in results for name in result.figures))
    print_table(
        title,
        ("", *(name.replace("_", " ") for name in names)),
        [
            (r.name, *(f"{r.figures[n]:.3f}" if n in r.figures else "" for n in names))
            for r in results
        ],
    )
