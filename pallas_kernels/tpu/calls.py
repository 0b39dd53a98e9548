"""How Pallas kernels for TPU are called: compiled, or interpreted on any device.

Matrices are read out of a stack where they lie: which one it is, is the first scalar that is
prefetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jentropy.pallas_kernels.resident import ResidentTensor

VMEM_BYTES = 32 << 20  # enough for the blocks of `decode`; every known TPU has it


def call(
    kernel: Callable[..., None],
    weight: ResidentTensor,
    *inputs: Any,
    name: str,
    grid: tuple[int, ...],
    in_specs: Sequence[Any],
    out_spec: Any,
    out: jax.ShapeDtypeStruct,
    scratch: Sequence[Any] = (),
    scalars: Sequence[Any] = (),
    vmem_bytes: int = VMEM_BYTES,
    interpret: Any,
) -> Array:
    """Runs a kernel whose grid goes over column tiles and, inside, over row tiles.

    Args:
      kernel: takes references to scalars, inputs, the output and scratch.
      scalars: in scalar memory, before the grid starts.
      interpret: see `interpret_params`.
    """
    which = weight.which()
    return pl.pallas_call(
        kernel if not which else lambda _, *refs: kernel(*refs),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(which) + len(scalars),
            grid=grid,
            in_specs=in_specs,
            out_specs=out_spec,
            scratch_shapes=scratch,
        ),
        out_shape=out,
        name=name,
        interpret=interpret_params(interpret),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_bytes
        ),
    )(*which, *scalars, *inputs)


def interpret_params(interpret: Any) -> Any:
    """What `pallas_call` takes.

    Args:
      interpret: False; True for the TPU interpreter, with memory that is poisoned until it is
        written; "hlo" for plain JAX operations, faster and free of callbacks; or `InterpretParams`.
    """
    if interpret == "hlo":
        return True
    return pltpu.InterpretParams(uninitialized_memory="nan") if interpret is True else interpret


def spec(
    weight: ResidentTensor,
    block: tuple[int, ...],
    index: Callable[..., tuple[Any, ...]],
    **options: Any,
) -> pl.BlockSpec:
    """Blocks of one of the weight's arrays.

    Args:
      index: (j, k) -> indices of a block, of a grid of two axes.
    """
    if weight.index is None:
        return pl.BlockSpec(block, lambda j, k, *_: index(j, k), **options)
    return pl.BlockSpec((None, *block), lambda j, k, at, *_: (at[0], *index(j, k)), **options)
