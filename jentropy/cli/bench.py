"""`jentropy bench`."""

from __future__ import annotations

import argparse
from typing import Any

import jax

import jentropy
from jentropy import bench, report
from jentropy.errors import InputError

from .console import print_device_note, print_table, write_json

HELP = "time codecs and kernels on this device, against what you would have otherwise"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", choices=tuple(bench.SUITES), default="archive")
    parser.add_argument(
        "--source", metavar="SRC", help="checkpoint to measure on; default: the bundled model"
    )
    parser.add_argument("--json", metavar="F", help="write the results as JSON (- for stdout)")
    parser.add_argument(
        "--png", metavar="F", help="suite archive: draw speed against bits per weight (or .svg)"
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="suite matmul on a Hopper GPU: find and keep the best configurations",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.tune and arguments.suite != "matmul":
        raise InputError("--tune", expected="suite matmul", found=f"suite {arguments.suite}")
    if arguments.png and arguments.suite != "archive":
        raise InputError("--png", expected="suite archive", found=f"suite {arguments.suite}")
    if arguments.suite == "matmul":
        print_device_note()
    source = arguments.source or jentropy.models.BUNDLED
    suite = bench.SUITES[arguments.suite]
    found = bench.tuning.run() if arguments.tune else suite.run(source)
    content = {"suite": arguments.suite, **bench.environment()}
    live = not isinstance(found, list) and arguments.json != "-"
    results = []
    for result in found:
        results.append(result)
        if live:
            print(_line(result), flush=True)
            if arguments.json:  # after each: what is interrupted leaves what it had
                write_json(arguments.json, content | {"results": [r.to_json() for r in results]})
    if not live:
        _show(arguments, content, results)
    if arguments.suite == "matmul" and jax.default_backend() == "cpu" and arguments.json != "-":
        print("CPU: the reference backend, at small shapes")
    if arguments.png:
        report.write_speeds({result.name: result.figures for result in results}, arguments.png)
    return 0


def _line(result: bench.Result) -> str:
    figures = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.figures.items())
    return f"{result.name}: {', '.join(figures)}"


def _show(
    arguments: argparse.Namespace, content: dict[str, Any], results: list[bench.Result]
) -> None:
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
    if arguments.json:
        write_json(arguments.json, content | {"results": [r.to_json() for r in results]})
