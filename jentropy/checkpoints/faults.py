"""What a file system says of a file, as one error that names it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jentropy.errors import DestinationError, InputError

# What TensorStore, which knows no OSError, has in its messages for what the system says.
SYSTEM = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOENT)
ANNEX = " ["  # begins what TensorStore's messages tell of its own doings


def said(error: BaseException) -> str:
    """A line of what an error says."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{first.split(ANNEX)[0]:.200}"


def of_system(error: ValueError) -> str:
    """What of the system's errors TensorStore reports; empty if none."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text:
        return os.strerror(errno.ENOSPC)
    return next((os.strerror(n) for n in SYSTEM if os.strerror(n) in text), "")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the system says about reading a file into an InputError."""
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str | Path) else path
        raise InputError(f"cannot be read: {said(error)}", file=place) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says about writing a destination into a DestinationError."""
    try:
        yield
    except OSError as error:
        raise DestinationError(f"cannot write: {said(error)}", file=path) from error
    except ValueError as error:
        if what := of_system(error):
            raise DestinationError(f"cannot write: {what}", file=path) from error
        raise
