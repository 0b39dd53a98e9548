"""`jentropy decompress`."""

from __future__ import annotations

import argparse

import jentropy

from .arguments import BASE, OVERWRITE, PACKED, Arguments
from .progress import progress_bar

HELP = "write the original files of a compressed checkpoint, byte for byte; of Orbax the same tree"
ARGUMENTS: Arguments = {
    **PACKED,
    "out": {"metavar": "OUT", "help": "must not exist; appears whole or not at all"},
    **OVERWRITE,
    **BASE,
}


def run(arguments: argparse.Namespace) -> int:
    """Writes the files."""
    with progress_bar("decompress", quiet=arguments.quiet) as advance:
        jentropy.decompress_checkpoint(
            arguments.checkpoint,
            arguments.out,
            progress=advance,
            overwrite=arguments.overwrite,
            base=arguments.base,
        )
    return 0
