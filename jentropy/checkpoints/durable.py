"""Files and folders that a loss of power does not take back once they were told to be there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # a link in the place of a file is refused
BINARY = getattr(os, "O_BINARY", 0)


def opened(file: Path, *, keep: bool = False) -> BinaryIO:
    """A file to write.

    Args:
      keep: whether what is in it stays; its end is then where writing begins.
    """
    flags = os.O_RDWR | os.O_CREAT | NO_LINK | BINARY | (os.O_APPEND if keep else os.O_TRUNC)
    return os.fdopen(os.open(file, flags, 0o666), "ab" if keep else "wb")


def truncate(file: Path, size: int) -> None:
    """Cuts a file, which is no link, to so many bytes."""
    with opened(file, keep=True) as stream:
        os.ftruncate(stream.fileno(), size)


def close(stream: BinaryIO) -> None:
    """Closes a file that was written, when all of it is on the disk."""
    with stream:
        stream.flush()
        os.fsync(stream.fileno())


def write(file: Path, data: Any, *, keep: bool = False) -> None:
    """Writes a file, or adds to it."""
    stream = opened(file, keep=keep)
    with stream:
        stream.write(data)
        close(stream)


def sync_folder(folder: Path) -> None:
    """Has the names in a folder on the disk."""
    if os.name == "nt":  # which has no descriptors of folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_above(folder: Path, new: list[Path]) -> None:
    """Has the names of new folders on the disk, and that of one below them."""
    for above in {folder.parent, *(one.parent for one in new)}:
        sync_folder(above)


def sync_tree(root: Path) -> None:
    """Has all files and folders below one on the disk."""
    for folder, _, files in os.walk(root):
        for name in files:
            descriptor = os.open(Path(folder, name), os.O_RDONLY | NO_LINK | BINARY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(folder))
