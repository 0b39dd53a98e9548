"""Arguments as tables: what `argparse` is told, by name; those of one meaning for all commands."""

from __future__ import annotations

import argparse
from typing import Any

Arguments = dict[str, dict[str, Any]]


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text!r:.40}")
    return int(text)


JSON: Arguments = {"--json": {"metavar": "F", "help": "write the results as JSON (- for stdout)"}}
STRICT: Arguments = {
    "--strict": {
        "action": "store_true",
        "help": "refuse quantised weights that contradict their config or lack a part, "
        "instead of keeping them as RAW codes, with a note",
    }
}
STEP: Arguments = {
    "--step": {
        "metavar": "N",
        "type": int,
        "help": "this step alone, where SRC is the root of an Orbax CheckpointManager",
    }
}
OVERWRITE: Arguments = {
    "--overwrite": {
        "action": "store_true",
        "help": "replace what is there, if it is of the same kind, when all is done",
    }
}
PACKED: Arguments = {"checkpoint": {"metavar": "DST", "help": "a compressed checkpoint"}}
BASE: Arguments = {
    "--base": {
        "metavar": "BASE",
        "action": "append",
        "help": "the compressed checkpoint from which the one that is written or read differs; "
        "if BASE has a base itself, name that by another --base after it",
    }
}
JOBS: Arguments = {
    "-j --jobs": {"type": positive, "metavar": "N", "help": "threads to use; default: all cores"}
}
QUIET: Arguments = {
    "-q --quiet": {"action": "store_true", "help": "no progress, notes, tables or summaries"}
}
