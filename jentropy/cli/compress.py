"""`jentropy compress`."""

from __future__ import annotations

import argparse

import jentropy

from .arguments import BASE, OVERWRITE, STEP, STRICT, Arguments
from .console import print_notes
from .inspect import summary
from .progress import progress_bar

HELP = "compress a checkpoint into a compressed Orbax checkpoint; taken up again after a crash"
ARGUMENTS: Arguments = {
    "source": {"metavar": "SRC", "help": "what `analyze` takes"},
    "destination": {"metavar": "DST", "help": "must not exist; appears whole or not"},
    **OVERWRITE,
    **STRICT,
    **STEP,
    **BASE,
    "--no-follow-links": {
        "action": "store_true",
        "help": "refuse a source with links, instead of reading what they lead to",
    },
}


def run(arguments: argparse.Namespace) -> int:
    """Compresses, and says how far."""
    with progress_bar("compress", quiet=arguments.quiet) as advance:
        jentropy.compress_checkpoint(
            arguments.source,
            arguments.destination,
            progress=advance,
            overwrite=arguments.overwrite,
            step=arguments.step,
            strict=arguments.strict,
            follow_links=not arguments.no_follow_links,
            base=arguments.base,
        )
    if not arguments.quiet:
        inspection = jentropy.inspect(arguments.destination)
        print_notes(inspection.notes)
        print(f"{arguments.destination}: {summary(inspection)}")
    return 0
