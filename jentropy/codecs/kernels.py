"""Loops that XLA's CPU backend compiles to one kernel.

Its runtime would otherwise start a kernel for every fusion of every step, a third of the time, and
deal the larger ones out to threads of its own, which then compete with those that call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from jentropy import jax_internals


def repeat(steps: Any, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    """`lax.fori_loop`, but for its being made of calls (see `in_one_kernel`)."""

    def body(state: tuple[Any, Any]) -> tuple[Any, Any]:
        i, carry = state
        return i + np.int32(1), step(i, carry)

    return lax.while_loop(lambda state: state[0] < steps, body, (np.int32(0), carry))[1]


def in_one_kernel(
    run: Callable[..., Any], *args: Any, elsewhere: Callable[..., Any] | None = None
) -> Any:
    """run(*args), in one kernel on CPU.

    XLA does so of itself with the smallest loops, by this mark. `run` is to be made of primitives,
    those on whole arrays inside of loops: functions called in it would bear the mark too, and not
    be inlined, and larger operations be dealt out all the same.

    Args:
      elsewhere: the same for other devices; None: `run`.
    """

    def marked(*args: Any) -> Any:
        mark = jax_internals.one_kernel_mark()
        if mark is None:  # slower
            return run(*args)
        with mark:
            return jax.jit(run)(*args)

    return lax.platform_dependent(*args, cpu=marked, default=elsewhere or run)
