"""Destinations that appear whole or not at all.

What is written lies in a hidden folder beside its destination until it is complete, and is then
renamed. The folder is locked, so that two runs to one destination do not mix.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jentropy.errors import DestinationError, Interrupted

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

_GLOB = frozenset("[]*?")
Replaces = Callable[[Path], str]  # what of a destination may not be replaced; "" if all may


@contextmanager
def destination_errors(path: Path) -> Iterator[None]:
    """Turns what the file system says about writing `path` into one DestinationError."""
    try:
        yield
    except OSError as error:
        raise DestinationError(f"cannot write: {error.strerror or error}", file=path) from error
    except ValueError as error:  # tensorstore reports a full disk so
        full = os.strerror(errno.ENOSPC)
        if "RESOURCE_EXHAUSTED" in str(error) or full in str(error):
            raise DestinationError(f"cannot write: {full}", file=path) from error
        raise


def refuse_existing(path: Path, replaces: Replaces | None = None) -> None:
    """Raises DestinationError if something is there.

    Args:
      replaces: says what may be replaced; nothing, if it is None.
    """
    if not (path.exists() or path.is_symlink()):
        return
    if replaces is None:
        raise DestinationError(
            "destination exists",
            file=path,
            expected="a path that is free",
            found="something",
            hint="--overwrite replaces it",
        )
    is_empty = path.is_dir() and not any(path.iterdir())
    if not is_empty and (other := replaces(path)):
        raise DestinationError(
            "destination cannot be overwritten",
            file=path,
            expected="what this command writes",
            found=other,
            hint="remove it, or take another path",
        )


def put_in_place(made: Path, path: Path, *, replace: bool) -> None:
    """Renames what was made to its destination.

    Args:
      made: lies in a folder of `staged`, whose end removes what was replaced.
      replace: whether something may be there.
    """
    old = made.parent / "replaced"
    if not replace or not (path.exists() or path.is_symlink()):
        os.rename(made, path)
        return
    os.rename(path, old)
    try:
        os.rename(made, path)
    except OSError:
        os.rename(old, path)
        raise


@contextmanager
def staged(
    path: Path, purpose: str, *, resumable: bool = False, replaces: Replaces | None = None
) -> Iterator[Path]:
    """A folder to prepare `path` in; removed in the end, after a failure with new parents of it.

    Args:
      path: the destination; the caller puts what it made there (`put_in_place`).
      purpose: a word that keeps apart what different commands stage.
      resumable: an interrupt (Ctrl-C) leaves the folder; one that is there is taken over.
      replaces: see `refuse_existing`.

    Raises:
      DestinationError: `path` exists, cannot be written, or another process is writing it.
      Interrupted: an interrupt (Ctrl-C), with what it left.
    """
    refuse_existing(path, replaces)
    folder = path.parent / f".{path.name}.jentropy-{purpose}"
    missing = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    with destination_errors(path):
        if not resumable and folder.exists():
            with _locked(folder, path):
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, path):
        try:
            yield folder
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            if interrupted and resumable:
                raise Interrupted(
                    f"interrupted: what is done lies in {folder}; the same command goes on from "
                    f"there, `rm -r {shlex.quote(str(folder))}` gives it up"
                ) from error
            shutil.rmtree(folder, ignore_errors=True)
            for parent in missing:
                with suppress(OSError):
                    parent.rmdir()
            if interrupted:
                raise Interrupted(f"interrupted: nothing of {path} is left") from error
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, path: Path) -> Iterator[None]:
    with destination_errors(path):
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DestinationError("another process is writing it", file=path) from error
        yield
    finally:
        os.close(lock)


@contextmanager
def without_glob(folder: Path) -> Iterator[Path]:
    """The folder by a path that holds no character of a pattern: Orbax expands them."""
    plain = folder.resolve()
    if not _GLOB & set(str(plain)):
        yield plain
        return
    with tempfile.TemporaryDirectory() as links:
        link = Path(links).resolve() / "folder"
        link.symlink_to(plain, target_is_directory=True)
        yield link
