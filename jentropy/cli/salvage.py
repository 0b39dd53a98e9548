"""`jentropy salvage`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

import jentropy
from jentropy.errors import CheckError, InputError

from .arguments import BASE, PACKED, Arguments
from .console import print_line
from .progress import progress_bar

HELP = "what is sound of a damaged compressed checkpoint, or the damaged parts written anew"
ARGUMENTS: Arguments = {
    **PACKED,
    "out": {"metavar": "OUT", "nargs": "?", "help": "sound files and tensors go there"},
    "--repair-from": {
        "metavar": "SRC",
        "help": "rewrite what is damaged of DST, by its source or a copy of it",
    },
    **BASE,
}


def run(arguments: argparse.Namespace) -> int:
    """Salvages or repairs, and lists the damage."""
    if (arguments.out is None) == (arguments.repair_from is None):
        told = "both" if arguments.out else "neither"
        raise InputError("salvage", expected="OUT or --repair-from", found=told)
    if arguments.out is None:
        damage = jentropy.repair(arguments.checkpoint, arguments.repair_from, base=arguments.base)
        print_damage(damage)
        if not arguments.quiet:
            print_line(f"{arguments.checkpoint}: {len(damage)} damages repaired")
        return 0
    with progress_bar("salvage", quiet=arguments.quiet) as advance:
        found = jentropy.salvage(
            arguments.checkpoint, arguments.out, progress=advance, base=arguments.base
        )
    print_damage(found.damage)
    if not arguments.quiet:
        partial = f", {len(found.partial)} in parts" if found.partial else ""
        print_line(f"{arguments.out}: {len(found.whole)} files whole{partial}")
    if found.damage:
        raise CheckError(f"{arguments.checkpoint}: {len(found.damage)} damages")
    return 0


def print_damage(damage: Iterable[InputError]) -> None:
    """Prints damage on standard error, a line for each."""
    for error in damage if sys.stderr is not None else ():
        print("jentropy:", error, file=sys.stderr)
