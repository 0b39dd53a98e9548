"""`jentropy compress`."""

from __future__ import annotations

import argparse

import jentropy

from .console import add_step, add_strict, print_notes
from .inspect import summary
from .progress import progress_bar

HELP = "compress a checkpoint into a compressed Orbax checkpoint; taken up again after a crash"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="what `analyze` takes")
    parser.add_argument("destination", metavar="DST", help="must not exist; appears whole or not")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a compressed checkpoint at DST when done"
    )
    add_strict(parser)
    add_step(parser)


def run(arguments: argparse.Namespace) -> int:
    with progress_bar("compress", quiet=arguments.quiet) as advance:
        jentropy.compress_checkpoint(
            arguments.source,
            arguments.destination,
            progress=advance,
            overwrite=arguments.overwrite,
            step=arguments.step,
            strict=arguments.strict,
        )
    if not arguments.quiet:
        inspection = jentropy.inspect(arguments.destination)
        print_notes(inspection.notes)
        print(f"{arguments.destination}: {summary(inspection)}")
    return 0
