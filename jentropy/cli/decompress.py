"""`jentropy decompress`."""

from __future__ import annotations

import argparse

import jentropy

from .progress import progress_bar

HELP = "write the original files of a compressed checkpoint, byte for byte"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DST", help="a compressed checkpoint")
    parser.add_argument("out", metavar="OUT", help="must not exist; appears whole or not")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace such files at OUT when done"
    )


def run(arguments: argparse.Namespace) -> int:
    with progress_bar("decompress", quiet=arguments.quiet) as advance:
        jentropy.decompress_checkpoint(
            arguments.source, arguments.out, progress=advance, overwrite=arguments.overwrite
        )
    return 0
