"""Destinations that appear whole or not at all.

What is written lies in a hidden folder beside its destination until it is complete, and is then
renamed, or sent to where a URL leads. The folder is locked, so that two runs to one destination do
not mix, and nobody else may look into it. Of its insides this module knows `out`, what is made,
`replaced`, what was there, and `delivered`, what was sent.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jentropy.errors import DestinationError, Interrupted

from . import delivering, durable
from .faults import writing
from .mirrors import mirror
from .remote import RemotePath

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

OUT, REPLACED, DELIVERED, LOCK = "out", "replaced", "delivered", "lock"
_GLOB = frozenset("[]*?")
Replaces = Callable[[Path], str]  # what of a destination may not be replaced; "" if all may


def is_there(path: Path) -> bool:
    """Whether something whole is at a destination."""
    if isinstance(path, RemotePath):
        return delivering.occupied(path)
    return path.exists() or path.is_symlink()


def refuse_existing(path: Path, replaces: Replaces | None = None) -> None:
    """Raises DestinationError if something is there.

    Args:
      replaces: says what may be replaced; nothing, if it is None.
    """
    if not is_there(path):
        return
    if replaces is None:
        raise DestinationError(
            "destination exists",
            file=path,
            expected="a path that is free",
            found="something",
            hint="--overwrite, or overwrite=True, replaces it",
        )
    there = mirror(path.url) if isinstance(path, RemotePath) else path
    is_empty = there.is_dir() and not any(there.iterdir())
    if not is_empty and (other := replaces(there)):
        raise DestinationError(
            "destination cannot be overwritten",
            file=path,
            expected="what this command writes",
            found=other,
            hint="remove it, or take another path",
        )


def put_in_place(made: Path, path: Path, *, replace: bool, keep: Collection[str] = ()) -> None:
    """Renames what was made to its destination, once all of it is on the disk, or sends it there.

    Args:
      made: `out` in a folder of `staged`, whose end removes what was replaced.
      replace: whether something may be there.
      keep: names of what was sent there already, behind a URL.

    Raises:
      DestinationError: something is there that may not be.
    """
    if isinstance(path, RemotePath):
        delivering.send(made, path, replace=replace, keep=keep)
        os.rename(made, made.parent / DELIVERED)
        return
    old = made.parent / REPLACED
    durable.sync_folder(made.parent)
    there = is_there(path)
    if there and not replace:
        refuse_existing(path)
    if there:
        os.rename(path, old)
    try:
        os.rename(made, path)
    except OSError:
        if there:
            os.rename(old, path)
        raise
    durable.sync_folder(path.parent)


def stage_of(path: Path, purpose: str) -> Path:
    """The folder that a destination is prepared in.

    Args:
      purpose: a word that keeps apart what different commands stage.
    """
    return path.parent / f".{path.name}.jentropy-{purpose}"


def recover(path: Path, purpose: str) -> None:
    """Ends what a run was killed in once it began to rename: clean-up, or a replacement.

    Raises:
      DestinationError: another process is writing it.
    """
    folder = stage_of(path, purpose)
    if not folder.is_dir():
        return
    _refuse_foreign(folder, path)
    old, made = folder / REPLACED, folder / OUT
    with _locked(folder, path), writing(path):
        if old.exists() and not path.exists():
            os.rename(old, path)
        elif not made.exists() and is_there(path):
            shutil.rmtree(folder)


def give_up(path: Path, purpose: str) -> None:
    """Removes a stage as far as that can be, but not one in which another process is writing."""
    folder = stage_of(path, purpose)
    with suppress(DestinationError, OSError):
        _refuse_foreign(folder, path)
        with _locked(folder, path):
            shutil.rmtree(folder)


def expect_free(path: Path, purpose: str, replaces: Replaces | None = None) -> None:
    """Raises DestinationError if something is there, once what was left there is ended.

    Args:
      purpose: see `stage_of`.
      replaces: see `refuse_existing`.
    """
    recover(path, purpose)
    refuse_existing(path, replaces)


def expect_space(path: Path, needed: int) -> None:
    """Raises DestinationError if a file system has not so many bytes left.

    Args:
      path: where they would go; a folder above it is there.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    with writing(path):
        free = shutil.disk_usage(above).free
    if free < needed:
        raise DestinationError(
            "free space",
            file=path,
            expected=f"{needed} bytes or more",
            found=free,
            hint="the same command goes on once there is more",
        )


def _work(folder: Path) -> Iterator[Path]:
    """What lies in a stage beside its lock."""
    return (inside for inside in folder.iterdir() if inside.name != LOCK)


@contextmanager
def staged(
    path: Path, purpose: str, *, resumable: bool = False, replaces: Replaces | None = None
) -> Iterator[Path]:
    """A folder to prepare `path` in; removed in the end.

    After a failure it stays if it is resumable and has something in it: the error has a note of
    it. Otherwise it is removed, with new parents of the path.

    Args:
      path: the destination; the caller puts what it made there (`put_in_place`).
      purpose: see `stage_of`.
      resumable: whether what a failure left is taken over.
      replaces: see `refuse_existing`.

    Raises:
      DestinationError: `path` exists, cannot be written, or another process is writing it.
      Interrupted: an interrupt (Ctrl-C), with what it left.
    """
    expect_free(path, purpose, replaces)
    folder = stage_of(path, purpose)
    missing = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    _refuse_foreign(folder, path)
    with _locked(folder, path):
        if not resumable:
            with writing(path):
                for inside in list(_work(folder)):
                    shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
        try:
            yield folder
            with writing(path):
                durable.sync_above(folder, missing)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            if resumable and any(_work(folder)):
                kept = (
                    f"what is done lies in {folder}; the same command goes on from there, "
                    f"`rm -r {shlex.quote(str(folder))}` gives it up"
                )
                if interrupted:
                    raise Interrupted(f"interrupted: {kept}") from error
                error.add_note(kept)
                raise
            shutil.rmtree(folder, ignore_errors=True)
            for parent in missing:
                with suppress(OSError):
                    parent.rmdir()
            if interrupted:
                raise Interrupted(f"interrupted: nothing of {path} is left") from error
            raise
        shutil.rmtree(folder, ignore_errors=True)
    if isinstance(path, RemotePath):  # whose stage has a folder of its own
        with suppress(OSError):
            path.parent.rmdir()


def _refuse_foreign(folder: Path, path: Path) -> None:
    """Raises DestinationError if a stage is a link, someone else's, or others may write there."""
    told = folder.lstat()
    ours = not hasattr(os, "getuid") or told.st_uid == os.getuid()
    shared = os.name == "posix" and told.st_mode & 0o022
    is_folder = stat.S_ISDIR(told.st_mode)
    if not is_folder or not ours or shared:
        raise DestinationError(
            f"{folder.name} beside it",
            file=path,
            expected="a folder of this user alone",
            found="no folder" if not is_folder else "others may write" if ours else "another's",
            hint="remove it, or take another path",
        )


@contextmanager
def _locked(folder: Path, path: Path) -> Iterator[None]:
    with writing(path):
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | durable.NO_LINK, 0o600)
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
    """The folder by a path of UTF-8 with no character of a pattern: Orbax expands them."""
    plain = folder.resolve()
    text = str(plain)
    if not _GLOB & set(text) and text.encode(errors="replace").decode() == text:
        yield plain
        return
    with tempfile.TemporaryDirectory() as links:
        link = Path(links).resolve() / "folder"
        link.symlink_to(plain, target_is_directory=True)
        yield link
