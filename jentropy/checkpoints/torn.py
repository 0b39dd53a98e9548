"""Files that are cut off while they are mapped: an error of theirs, not the end of the process.

Reading a page of a map that its file no longer has is SIGBUS. The handler that stands here for it
(Linux) puts zeros into the place of what is gone, if that is a map that was told to it, and notes
the file; whoever read asks (`expect_whole`) before the numbers are believed. Any other fault goes
to the handler that was there before.
"""

from __future__ import annotations

import bisect
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

from jentropy.errors import TruncatedError

ADDRESS = 16  # of the fault, in siginfo_t
SA_SIGINFO, SA_NODEFER = 4, 0x40000000
PROT_READ, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 0x10, 0x20
PAGE = 4096

_lock = threading.Lock()
_starts: list[int] = []  # of maps, sorted
_maps: dict[int, tuple[int, str]] = {}  # end and file, by start
_torn: set[str] = set()
_kept: list[object] = []  # what the system holds pointers to


class _Action(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def watch(start: int, size: int, path: Path) -> None:
    """Has a map watched until it is let go of by `forget`; its file counts as whole again.

    Args:
      start: its address.
      size: bytes.
      path: its file.
    """
    if sys.platform != "linux" or not size:
        return
    with _lock:
        if not _kept:
            _install()
        if start not in _maps:
            bisect.insort(_starts, start)
        _maps[start] = (start + size, os.fspath(path))
        _torn.discard(os.fspath(path))


def forget(start: int) -> None:
    """Ends the watch of a map, by its address."""
    with _lock:
        if _maps.pop(start, None) is not None:
            del _starts[bisect.bisect_left(_starts, start)]


def expect_whole(root: Path) -> None:
    """Raises TruncatedError if a file, or one below a folder, was cut off while it was read."""
    for path in sorted(_torn):
        if Path(path).is_relative_to(root):
            raise TruncatedError(
                "file", file=path, expected="it unchanged while it is read", found="it cut off"
            )


def _install() -> None:
    libc = ctypes.CDLL(None)
    mmap = libc.mmap
    mmap.restype = ctypes.c_void_p
    mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    before = _Action()
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def fault(_: int, info: int, __: int) -> None:
        address = ctypes.c_void_p.from_address(info + ADDRESS).value or 0
        at = bisect.bisect_right(_starts, address) - 1
        end, path = _maps.get(_starts[at], (0, "")) if at >= 0 else (0, "")
        if address >= end:
            libc.sigaction(signal.SIGBUS, ctypes.byref(before), None)
            return
        page = address - address % PAGE
        flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
        mmap(page, -(-(end - page) // PAGE) * PAGE, PROT_READ, flags, -1, 0)
        _torn.add(path)

    handler = kind(fault)
    action = _Action(handler=ctypes.cast(handler, ctypes.c_void_p), flags=SA_SIGINFO | SA_NODEFER)
    libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(before))
    _kept.extend((handler, before, libc))
