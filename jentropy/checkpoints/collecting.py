"""Python's search for garbage, put off where millions of objects are made and none is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
            gc.enable()
