"""Interpret mode: Pallas kernels on any device, for their results and their faults."""

from __future__ import annotations

from typing import Any

from jax.experimental.pallas import tpu as pltpu


def interpret_params(interpret: Any) -> Any:
    """What `pallas_call` takes; True stands for memory that is poisoned until it is written."""
    if interpret is True:
        return pltpu.InterpretParams(uninitialized_memory="nan")
    return interpret
