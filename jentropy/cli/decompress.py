"""`jentropy decompress`."""

from __future__ import annotations

import argparse

import jentropy

from .console import add_shared
from .progress import progress_bar

HELP = "write the original files of a compressed checkpoint, byte for byte"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """From where, and where to."""
    parser.add_argument("source", metavar="DST", help="a compressed checkpoint")
    parser.add_argument("out", metavar="OUT", help="must not exist; appears whole or not")
    add_shared(parser, "--overwrite")


def run(arguments: argparse.Namespace) -> int:
    """Writes the files."""
    with progress_bar("decompress", quiet=arguments.quiet) as advance:
        jentropy.decompress_checkpoint(
            arguments.source, arguments.out, progress=advance, overwrite=arguments.overwrite
        )
    return 0
