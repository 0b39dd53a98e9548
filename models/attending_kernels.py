"""Which library kernel computes attention, and where: everything else goes by blocks of keys.

A row of `KERNELS` says of a kernel on which platform it runs and what it covers. The platform that
a program is lowered for decides, so a model that is compiled for a TPU elsewhere has its kernel.
Derivatives are those of the blocks. `JENTROPY_ATTENTION=blockwise` in the environment turns all
of them off in programs that are traced from then on.

What no kernel covers: float32, which the TPU's and cuDNN's multiply with less; arrays
that XLA splits over a mesh, and not a `shard_map`; steps of few tokens, where all scores are
computed at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from . import cudnn, splash

OFF = "JENTROPY_ATTENTION"  # in the environment: "blockwise", or nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is static of a sum over keys.

    Attributes:
      width, value_width: of a head.
      queries, slots: of a sequence.
      batch: sequences.
      in_order: whether slots are one position after the other.
      windowed, capped, sinks: whether there is such a thing.
      dtypes: of queries, keys and values.
    """

    width: int
    value_width: int
    queries: int
    slots: int
    batch: int
    in_order: bool
    windowed: bool
    capped: bool
    sinks: bool
    dtypes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What a library's kernel covers.

    Attributes:
      is_there: whether it is installed, for devices of this process.
      mix: computes it, told as `attending.blockwise`.
      dtypes: any of them, the same for queries, keys and values.
      widths: multiples of `step` up to `most`.
      same_width: whether values must be as wide as keys.
      queries: the fewest.
      slots, window_slots: the most, without a window and with one.
      mask_bytes: the most that a mask may take, of kernels that read one.
      in_order: whether slots must be in order.
      capped, sinks: whether it has them.
    """

    is_there: Callable[[], bool]
    mix: Callable[..., jax.Array]
    dtypes: tuple[str, ...]
    step: int
    most: int
    same_width: bool
    queries: int
    slots: int
    window_slots: int
    mask_bytes: int | None
    in_order: bool
    capped: bool
    sinks: bool

    def covers(self, case: Case) -> bool:
        """Whether it computes this case."""
        mask = case.batch * case.queries * case.slots * 2
        return (
            case.dtypes in [frozenset((name,)) for name in self.dtypes]
            and all(w <= self.most and w % self.step == 0 for w in (case.width, case.value_width))
            and (case.width == case.value_width or not self.same_width)
            and case.queries >= self.queries
            and case.slots <= (self.window_slots if case.windowed else self.slots)
            and (self.mask_bytes is None or mask <= self.mask_bytes)
            and (case.in_order or not self.in_order)
            and (self.capped or not case.capped)
            and (self.sinks or not case.sinks)
        )


KERNELS: Mapping[str, Kernel] = {  # by platform
    "tpu": Kernel(
        is_there=splash.is_there,
        mix=splash.splash,
        dtypes=("bfloat16",),
        step=64,
        most=256,
        same_width=False,
        queries=128,  # fewer leave rows of its parts empty
        slots=1 << 17,  # its tables of parts lie in scalar memory
        window_slots=splash.LONGEST_WINDOW,
        mask_bytes=None,
        in_order=True,
        capped=True,
        sinks=True,
    ),
    "cuda": Kernel(
        is_there=cudnn.is_there,
        mix=cudnn.cudnn,
        dtypes=("bfloat16", "float16"),
        step=8,
        most=128,  # 256 on Hopper
        same_width=True,
        queries=16,
        slots=1 << 17,
        window_slots=1 << 17,
        mask_bytes=1 << 28,
        in_order=False,
        capped=False,
        sinks=False,
    ),
}


def kernels_for(case: Case) -> dict[str, Callable[..., jax.Array]]:
    """The kernels that cover a case, by platform.

    Example:
      >>> case = Case(width=128, value_width=128, queries=512, slots=4096, batch=1, in_order=True,
      ...     windowed=False, capped=True, sinks=False, dtypes=frozenset({"bfloat16"}))
      >>> list(kernels_for(case))
      ['tpu']
    """
    if _on_a_mesh() or os.environ.get(OFF) == "blockwise":
        return {}
    return {
        platform: kernel.mix
        for platform, kernel in KERNELS.items()
        if kernel.covers(case) and kernel.is_there()
    }


def by_platform(
    kernels: Mapping[str, Callable[..., jax.Array]],
    plain: Callable[..., jax.Array],
    *arrays: Any,
) -> jax.Array:
    """plain(*arrays), or what the platform's kernel makes of them; derivatives are those of plain.

    Args:
      arrays: the first three and the last may be differentiated.
    """

    if not kernels:
        return plain(*arrays)

    @jax.custom_jvp
    def mix(*arrays: Any) -> jax.Array:
        return jax.lax.platform_dependent(*arrays, default=plain, **kernels)

    @mix.defjvp
    def tangent(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        def of(*differentiated: Any) -> jax.Array:
            return plain(*differentiated[:3], *primals[3:-1], differentiated[3])

        q, k, v, *_, sinks = zip(primals, tangents, strict=True)
        own, along = zip(q, k, v, sinks, strict=True)
        return mix(*primals), jax.jvp(of, own, along)[1]

    return mix(*arrays)


def _on_a_mesh() -> bool:
    """Whether XLA decides how arrays are split: not on one device, nor within `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and any(kind != AxisType.Manual for kind in mesh.axis_types)


def dtypes_of(*arrays: jax.Array) -> frozenset[str]:
    """Names of the arrays' dtypes."""
    return frozenset(jnp.dtype(array.dtype).name for array in arrays)
