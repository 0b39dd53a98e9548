"""`jentropy verify`."""

from __future__ import annotations

import argparse

import jentropy
from jentropy.errors import CheckError, CorruptError, TruncatedError

from .console import add_shared
from .progress import progress_bar

HELP = "check every checksum of a compressed checkpoint and decode all of it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of what, and what it is compared with."""
    parser.add_argument("checkpoint", metavar="DST", help="a compressed checkpoint")
    parser.add_argument("--against", metavar="SRC", help="compare every byte with the source")
    add_shared(parser, "--step")


def run(arguments: argparse.Namespace) -> int:
    """Verifies, and says how much was sound."""
    try:
        with progress_bar("verify", quiet=arguments.quiet) as advance:
            result = jentropy.verify(
                arguments.checkpoint, arguments.against, progress=advance, step=arguments.step
            )
    except (CorruptError, TruncatedError) as error:  # here damage is a check that failed
        raise CheckError(str(error)) from error
    if not arguments.quiet:
        compared = f", the same as {arguments.against}" if result.compared else ""
        print(
            f"{arguments.checkpoint}: {result.tensors} tensors, {result.files} files, "
            f"{result.chunks} chunks, {result.bytes:,} bytes sound{compared}"
        )
    return 0
