"""How Pallas kernels are compiled for TPU, or interpreted on any device."""

from __future__ import annotations

from typing import Any

from jax.experimental.pallas import tpu as pltpu

VMEM_BYTES = 32 << 20  # enough for the blocks of `decode`; every known TPU has it


def compiler_params(vmem_bytes: int = VMEM_BYTES) -> pltpu.CompilerParams:
    """Of a kernel whose grid goes over column tiles and, inside, over row tiles."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_bytes
    )


def interpret_params(interpret: Any) -> Any:
    """What `pallas_call` takes.

    Args:
      interpret: False; True for the TPU interpreter, with memory that is poisoned until it is
        written; "hlo" for plain JAX operations, faster and free of callbacks; or `InterpretParams`.
    """
    if interpret == "hlo":
        return True
    return pltpu.InterpretParams(uninitialized_memory="nan") if interpret is True else interpret
