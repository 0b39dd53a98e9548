"""`jentropy decompress`."""

from __future__ import annotations

import argparse

import jentropy

from .console import progress_bar

HELP = "write the original files of a compressed checkpoint, byte for byte"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DST", help="a compressed checkpoint")
    parser.add_argument("out", metavar="OUT", help="must not exist; appears whole or not")


def run(arguments: argparse.Namespace) -> int:
    with progress_bar("decompress", None) as advance:
        jentropy.decompress_checkpoint(arguments.source, arguments.out, progress=advance)
    return 0
