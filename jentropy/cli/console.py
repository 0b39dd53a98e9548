"""What the commands share in printing: tables, notes, JSON files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jentropy.errors import DestinationError, shown
from jentropy.pallas_kernels import backends, targets

from .progress import is_terminal

WIDTH = 120  # of tables in a pipe, where there is no terminal to ask


def print_line(text: str) -> None:
    """Prints a line that has names of files in it."""
    print(shown(text))


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table, its first column to the left and the others to the right."""
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))  # text, not rich's markup
    print_line(title)
    Console(width=None if is_terminal(sys.stdout) else WIDTH, highlight=False).print(table)


def print_notes(notes: Iterable[str], *, quiet: bool = False) -> None:
    """Prints what the user should know beside the results, on standard error."""
    if sys.stderr is not None and not quiet:
        for note in notes:
            print("jentropy: note:", shown(note), file=sys.stderr)


def print_device_note() -> None:
    """Says why this machine's accelerator runs no kernels, if that is so."""
    why, wanted = targets.why_not(jax.devices()[0]), backends.suitable_backend()
    if not why and wanted != "reference":
        why = backends.trouble(wanted)
    print_notes([why] if why else [])


def size_of(path: Path) -> int | None:
    """Bytes of a file or of all files below a directory; None if there is none."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) or None


def write_json(file: str, content: Any) -> None:
    """Writes JSON to a file, `-` for standard output."""
    text = json.dumps(content, indent=1) + "\n"
    if file == "-":
        print(text, end="")
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DestinationError(f"cannot write: {error.strerror}", file=file) from error
