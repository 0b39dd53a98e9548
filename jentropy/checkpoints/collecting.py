"""Python's search for garbage, put off where millions of objects are made and none is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = 1 << 16  # objects made since the last search; Python's 700 cost a third of small tensors


@contextmanager
def put_off() -> Iterator[None]:
    """No search for cycles meanwhile, in any thread: it goes through all that is made, each time.

    Example:
      >>> with put_off():
      ...     gc.isenabled()
      False
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            if not gc.get_freeze_count():  # so what was made is old, and the next search short
                gc.freeze()
                gc.unfreeze()
            gc.enable()


@contextmanager
def seldom() -> Iterator[None]:
    """Fewer searches for cycles meanwhile, for work of any length, of which some may be left.

    Example:
      >>> with seldom():
      ...     gc.get_threshold()[0]
      65536
    """
    was = gc.get_threshold()
    if not 0 < was[0] < SELDOM:  # it is as seldom already, by another thread that will end it too
        yield
        return
    gc.set_threshold(SELDOM, *was[1:])
    try:
        yield
    finally:
        gc.set_threshold(*was)
