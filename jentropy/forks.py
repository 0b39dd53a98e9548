"""Children of a process that has used JAX: they are told so, instead of waiting forever.

XLA computes in threads, and `os.fork` copies none of them. A child that computes would wait for
threads that are not there; one that only reads what is stored as it is may go on.
"""

from __future__ import annotations

import os

from .errors import UnsupportedError
from .jax_internals import started_backends

_computed: list[int] = []  # ids of processes that had started JAX when they were forked
_forked: list[int] = []  # ids of their children


def _before() -> None:
    if started_backends():
        _computed[:] = [os.getpid()]


def _in_child() -> None:
    if _computed:
        _forked[:] = [os.getpid()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)


def expect_threads() -> None:
    """Raises UnsupportedError in a child of a process that had used JAX.

    Example:
      >>> expect_threads()
    """
    if _forked:
        raise UnsupportedError(
            "this process",
            expected="one whose parent had not used JAX when it forked",
            found=f"a child of {_computed[0]}, which had",
            hint="start processes by spawn: multiprocessing.get_context('spawn')",
        )
