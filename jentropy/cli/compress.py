"""`jentropy compress`."""

from __future__ import annotations

import argparse
from typing import Any

import jentropy
from jentropy.errors import InputError, said

from .arguments import BASE, OVERWRITE, STEP, STRICT, Arguments
from .console import print_line, print_notes
from .inspect import summary
from .progress import progress_bar

HELP = "compress a checkpoint into a compressed Orbax checkpoint; taken up again after a crash"


def processes(text: str) -> tuple[str, int, int]:
    """The address of the first process, how many there are, and which one this is."""
    match text.split(","):
        case [address, count, number] if count.isdecimal() and number.isdecimal():
            return address, int(count), int(number)
    expected = "ADDRESS,COUNT,NUMBER, as in host:8476,4,0"
    raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r:.40}")


ARGUMENTS: Arguments = {
    "source": {"metavar": "SRC", "help": "what `analyze` takes"},
    "destination": {"metavar": "DST", "help": "must not exist; appears whole or not at all"},
    **OVERWRITE,
    **STRICT,
    **STEP,
    **BASE,
    "--distributed": {
        "nargs": "?",
        "type": processes,
        "const": (),
        "metavar": "ADDRESS,COUNT,NUMBER",
        "help": "share the work with processes that run the same command: the address of the first "
        "(host:port), how many there are, and which one this is (0, 1, ...); without them what "
        "jax.distributed finds out",
    },
    "--no-follow-links": {
        "action": "store_true",
        "help": "refuse a source with links, instead of reading what they lead to",
    },
}


def run(arguments: argparse.Namespace) -> int:
    """Compresses, and says how far."""
    if arguments.distributed is not None:
        _join(arguments.distributed)
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
        print_line(f"{arguments.destination}: {summary(inspection)}")
    return 0


def _join(told: tuple[Any, ...]) -> None:
    """Joins the processes of `jax.distributed`."""
    import jax

    try:
        jax.distributed.initialize(*told)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--distributed: {said(error)}") from error
