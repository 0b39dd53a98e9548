"""`jentropy verify`."""

from __future__ import annotations

import argparse

import jentropy
from jentropy.errors import CheckError, CorruptError, TruncatedError

from .arguments import BASE, PACKED, STEP, Arguments
from .console import print_line
from .progress import progress_bar
from .salvage import print_damage

HELP = "check every checksum of a compressed checkpoint and decode all of it"
ARGUMENTS: Arguments = {
    **PACKED,
    "--against": {"metavar": "SRC", "help": "compare every byte with the source"},
    **STEP,
    **BASE,
}


def run(arguments: argparse.Namespace) -> int:
    """Verifies, and says how much was sound."""
    try:
        with progress_bar("verify", quiet=arguments.quiet) as advance:
            result = jentropy.verify(
                arguments.checkpoint,
                arguments.against,
                progress=advance,
                step=arguments.step,
                base=arguments.base,
            )
    except (CorruptError, TruncatedError) as error:  # here damage is a check that failed
        damage = [error.among(()), *error.others]
        print_damage(damage if error.others else ())
        told = f"{arguments.checkpoint}: {len(damage)} damages" if error.others else str(error)
        raise CheckError(told) from error
    if not arguments.quiet:
        compared = f", the same as {arguments.against}" if result.compared else ""
        print_line(
            f"{arguments.checkpoint}: {result.tensors} tensors, {result.files} files, "
            f"{result.chunks} chunks, {result.bytes:,} bytes sound{compared}"
        )
    return 0
