"""`jentropy compress`."""

from __future__ import annotations

import argparse
from pathlib import Path

import jentropy

from .console import add_step, print_notes, progress_bar, size_of
from .inspect import summary

HELP = "compress a checkpoint into a compressed Orbax checkpoint; taken up again after a crash"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="what `analyze` takes")
    parser.add_argument("destination", metavar="DST", help="must not exist; appears whole or not")
    add_step(parser)


def run(arguments: argparse.Namespace) -> int:
    with progress_bar("compress", size_of(Path(arguments.source))) as advance:
        jentropy.compress_checkpoint(
            arguments.source, arguments.destination, progress=advance, step=arguments.step
        )
    inspection = jentropy.inspect(arguments.destination)
    print_notes(inspection.notes)
    print(f"{arguments.destination}: {summary(inspection)}")
    return 0
