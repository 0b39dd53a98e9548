"""Files read in parts, and mapped without a descriptor for each: a checkpoint has more files than
a process may open.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from jentropy.errors import DestinationError, said

from . import faults, torn
from .remote import RemotePath

AHEAD_BYTES = 1 << 23  # of what is read from elsewhere
IN_MEMORY = 1 << 26  # bytes from elsewhere; of more, pages that are not in use take no memory
TRACKS = sys.version_info < (3, 13)  # from then on Python's own maps can do without a descriptor


class File:
    """A file that is read in parts, from any thread; it closes when nobody has it any more."""

    def __init__(self, path: Path):
        self._path = path
        self._descriptor = -1
        # What was read ahead of a file that lies elsewhere, and where that begins.
        self._ahead: tuple[bytes | bytearray, int] = b"", 0
        if not isinstance(path, RemotePath):
            self._descriptor = faults.opened(path)

    def read(self, offset: int, size: int) -> bytes | bytearray:
        """So many bytes from there on; fewer where the file ends."""
        if isinstance(self._path, RemotePath):
            return self._read_ahead(self._path, offset, size)
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, offset)
        with self._path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    def _read_ahead(self, path: RemotePath, offset: int, size: int) -> bytes | bytearray:
        block, begin = self._ahead
        if not begin <= offset <= offset + size <= begin + len(block):
            block, begin = self._ahead = path.read(offset, max(size, AHEAD_BYTES)), offset
        return block[offset - begin : offset - begin + size]

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._descriptor >= 0:
            close(self._descriptor)


def mapped(path: Path, size: int | None = None) -> np.ndarray:
    """The first bytes of a file, mapped for reading. uint8[size]

    Args:
      size: how many; None: all that there are. The file has to have them.

    Example:
      >>> bytes(mapped(Path(__file__), 3))
      b'\"\"\"'
    """
    descriptor = faults.opened(path)
    try:
        size = os.fstat(descriptor).st_size if size is None else size
        if size == 0:
            return np.zeros(0, np.uint8)
        array = np.ndarray.__new__(np.memmap, (size,), np.uint8, _map(descriptor, size))
    finally:
        os.close(descriptor)
    array.filename = os.fspath(path)  # for messages, as NumPy has it
    torn.watch(array.ctypes.data, size, path)
    return np.asarray(array)


def brought(path: RemotePath, offset: int, size: int) -> np.ndarray:
    """Bytes of a file behind a URL; many are put down. uint8[size]"""
    if size <= IN_MEMORY:
        return np.frombuffer(path.read(offset, size), np.uint8)
    ends = range(0, size, IN_MEMORY)
    return put_down(path.read(offset + at, min(IN_MEMORY, size - at)) for at in ends)


@contextmanager
def _without_name() -> Iterator[IO[bytes]]:
    """A file without a name in the temporary folder, to write.

    Raises:
      DestinationError: it cannot be written.
    """
    try:
        with tempfile.TemporaryFile() as stream:
            yield stream
    except OSError as error:
        raise DestinationError(
            f"cannot write a temporary file: {said(error)}",
            file=tempfile.tempdir,
            hint="TMPDIR names the folder for them",
        ) from error


def put_down(parts: Iterable[bytes | bytearray | memoryview]) -> np.ndarray:
    """Parts of a buffer, one after another, in a file without a name, mapped. uint8[bytes]

    Example:
      >>> bytes(put_down([b"ab", b"c"]))
      b'abc'
    """
    with _without_name() as stream:
        size = sum(stream.write(part) for part in parts)
        stream.flush()
        return np.frombuffer(_map(stream.fileno(), size), np.uint8)


def contiguous(values: np.ndarray) -> np.ndarray:
    """The numbers of an array without what lies between them; many are put down.

    Args:
      values: [n, ...], mapped.

    Example:
      >>> contiguous(np.arange(6).reshape(3, 2)[:, :1]).strides
      (8, 8)
    """
    if values.nbytes <= IN_MEMORY:
        return np.ascontiguousarray(values)
    step = max(1, len(values) * IN_MEMORY // values.nbytes)
    parts = (np.ascontiguousarray(values[n : n + step]) for n in range(0, len(values), step))
    whole = put_down(part.reshape(-1).view(np.uint8).data for part in parts)
    return whole.view(values.dtype).reshape(values.shape)


def room(size: int) -> np.ndarray:
    """Zeros in a file without a name, mapped, to be written. uint8[size]

    Example:
      >>> room(3).tolist()
      [0, 0, 0]
    """
    with _without_name() as stream:
        if hasattr(os, "posix_fallocate"):  # a full disk ends who writes to a map
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)
        return np.frombuffer(mmap.mmap(stream.fileno(), size), np.uint8)


def hole(size: int) -> np.ndarray:
    """Zeros that take no memory and no disk, to be read. uint8[size]

    Example:
      >>> hole(3).tolist()
      [0, 0, 0]
    """
    if not size:
        return np.zeros(0, np.uint8)
    with _without_name() as stream:
        stream.truncate(size)
        return np.frombuffer(_map(stream.fileno(), size), np.uint8)


class Elsewhere:
    """The bytes of a file behind a URL, of which a slice is read when it is asked for."""

    def __init__(self, path: RemotePath):
        self._path = path
        self.size = path.stat().st_size

    def __getitem__(self, part: slice) -> np.ndarray:
        begin, end, _ = part.indices(self.size)
        return brought(self._path, begin, end - begin)


def sliced(path: Path) -> np.ndarray | Elsewhere:
    """The bytes of a file, for slices of them. uint8"""
    return Elsewhere(path) if isinstance(path, RemotePath) else mapped(path)


def watch(array: np.memmap, path: Path) -> None:
    """Has a map that somebody else made looked after as those of `mapped` are."""
    start = array.ctypes.data
    torn.watch(start, array.nbytes, path)
    weakref.finalize(getattr(array, "_mmap", array), torn.forget, start).atexit = False


def _map(descriptor: int, size: int) -> Any:
    if not TRACKS:
        made = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ, trackfd=False)  # type: ignore
        start = np.frombuffer(made, np.uint8).ctypes.data
        weakref.finalize(made, torn.forget, start).atexit = False
        return made
    if os.name != "posix":
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    place = ctypes.c_void_p
    libc.mmap.argtypes = [place, *[ctypes.c_size_t, *[ctypes.c_int] * 3], ctypes.c_int64]
    libc.munmap.argtypes = [place, ctypes.c_size_t]
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    buffer = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(buffer, _unmap, libc.munmap, address, size).atexit = False
    return memoryview(buffer).toreadonly()


def _unmap(munmap: Callable[[int, int], int], address: int, size: int) -> None:
    torn.forget(address)
    munmap(address, size)
