"""Files read, and what the system says of them as one error that names the right one.

Whatever is read is a regular file: a pipe would keep its reader waiting, a device has no end.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from jentropy.errors import DestinationError, InputError, said

from .remote import RemotePath

# What TensorStore, which knows no OSError, has in its messages for what the system says.
SYSTEM = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOENT)
# What begins a message that is not about what was asked for.
STATUS = re.compile("(NOT_FOUND|PERMISSION_DENIED|UNAVAILABLE|DATA_LOSS|ABORTED|INTERNAL|UNKNOWN):")
NAMED = re.compile(r'"(/[^"]+)"')  # a file in them
READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
MOST_BYTES = 1 << 30  # of a file that is read whole

P = ParamSpec("P")
R = TypeVar("R")


def of_system(error: Exception) -> str:
    """What of the system's errors TensorStore reports; empty if none."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text:
        return os.strerror(errno.ENOSPC)
    named = next((os.strerror(n) for n in SYSTEM if os.strerror(n) in text), "")
    return named or (said(error) if STATUS.match(text) else "")


def named_in(error: BaseException, path: object) -> object:
    """The file that an error is about, if it says so, else the path."""
    if isinstance(error, OSError):
        return error.filename if isinstance(error.filename, str | Path) else path
    found = NAMED.search(str(error))
    return found[1] if found else path


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the system says about reading a file into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be read: {said(error)}", file=named_in(error, path)) from error


def opened(path: Path) -> int:
    """A descriptor of a regular file, to read.

    Raises:
      InputError: there is none, it cannot be read, or it is something else.
    """
    if isinstance(path, RemotePath):
        path.fetch()
    with reading(path):
        descriptor = os.open(path, READ)
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:
            os.close(descriptor)
            raise
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise InputError("not a file", file=path, expected="a regular file", found="another kind")
    return descriptor


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file.

    Args:
      most: bytes that it may have.

    Raises:
      InputError: it cannot be read, or has more.

    Example:
      >>> read_file(Path(__file__))[:3]
      b'\"\"\"'
    """
    with reading(path), os.fdopen(opened(path), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise InputError(
                "size of the file", file=path, expected=f"at most {most} bytes", found=size
            )
        return stream.read()


def told(run: Callable[P, R]) -> Callable[P, R]:
    """A function whose OSErrors are InputErrors that name their file."""

    @functools.wraps(run)
    def wrapped(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return run(*arguments, **keywords)
        except OSError as error:
            file = named_in(error, None)
            raise InputError(f"cannot be used: {said(error)}", file=file) from error

    return wrapped


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
