"""`jentropy bench`."""

from __future__ import annotations

import argparse

import jax

import jentropy
from jentropy import bench

from .console import print_table, write_json

HELP = "time codecs and kernels on this device, against what you would have otherwise"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", choices=tuple(bench.SUITES), default="archive")
    parser.add_argument(
        "--source", metavar="SRC", help="checkpoint to measure on; default: the bundled model"
    )
    parser.add_argument("--json", metavar="F", help="write the results as JSON (- for stdout)")


def run(arguments: argparse.Namespace) -> int:
    source = arguments.source or jentropy.models.BUNDLED
    results = bench.SUITES[arguments.suite].run(source)
    content = {
        "suite": arguments.suite,
        **bench.environment(),
        "results": [result.to_json() for result in results],
    }
    if arguments.json != "-":
        names = list(dict.fromkeys(key for result in results for key in result.figures))
        print_table(
            f"{arguments.suite} on {content['device']}",
            ("", *(name.replace("_", " ") for name in names)),
            [
                (r.name, *(f"{r.figures[n]:.3f}" if n in r.figures else "" for n in names))
                for r in results
            ],
        )
        if arguments.suite == "matmul" and jax.default_backend() == "cpu":
            print("CPU: the reference backend, at small shapes")
    if arguments.json:
        write_json(arguments.json, content)
    return 0
