"""Runs functions of this project whose Pallas kernels for Hopper are compiled and emulated.

emulator = Emulator(dump)           # in a process of its own: compilers read what it sets
with emulator.on():
    y = kernels.multiply(x, weight, plan, product)    # not within jax.jit
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from jentropy.pallas_kernels.profiling import compiling

from .fault import Fault
from .machine import Machine

TARGET = "h200"


class Emulator:
    """Stands for a GPU.

    Args:
      dump: a folder that the compilers write to.

    Attributes:
      change: what is done to the text of kernels, to plant faults.
      again: takes the text of the kernel before, which is compiled once for many faults.
      seed: of the order in which things happen.
      ran: what came of each kernel.
    """

    def __init__(self, dump: Path) -> None:
        os.environ["MOSAIC_GPU_DUMP_HOST_LLVM"] = "1"
        compiling.prepare(TARGET, dump)
        self.dump = dump
        self.change: Callable[[str], str] | None = None
        self.seed = 0
        self.ran: list[dict[str, int]] = []
        self.again = False
        self._texts = "", ""

    @contextmanager
    def on(self) -> Iterator[Emulator]:
        """Within, kernels are emulated that are called outside of `jax.jit`."""
        original = plgpu.kernel

        def kernel(body: Any, **options: Any) -> Callable[..., Any]:
            call = original(body, **options)
            return lambda *operands: self._run(call, operands, options["out_type"])

        with mock.patch.object(plgpu, "kernel", kernel):
            yield self

    def _run(self, call: Any, operands: tuple[Any, ...], out_type: Any) -> Any:
        if not self.again:
            self._texts = self._compiled(call, operands)
        ptx, host = self._texts
        if self.change is not None:
            changed = self.change(ptx)
            assert changed != ptx, "nothing was changed"
            ptx = changed
        made = jax.tree.leaves(out_type)
        results = [np.full(a.size * a.dtype.itemsize, 0xFF, np.uint8) for a in made]
        arrays = [*map(_bytes, operands), *results]
        before = [a.copy() for a in arrays[: len(operands)]]
        self.ran.append(Machine(ptx, host).run(arrays, self.seed))
        for number, (old, new) in enumerate(zip(before, arrays, strict=False)):
            if (old != new).any():
                raise Fault(f"operand {number} is not as it was")
        outs = [
            jnp.asarray(bytes_.view(a.dtype).reshape(a.shape))
            for bytes_, a in zip(results, made, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(out_type), outs)

    def _compiled(self, call: Any, operands: tuple[Any, ...]) -> tuple[str, str]:
        """Texts of the kernel and of its host's code."""
        compiling.empty(self.dump)
        abstract = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands]
        compiling.compile_for(TARGET, lambda *a: call(*a), *abstract)
        return tuple(next(self.dump.glob(end)).read_text() for end in ("*.ptx", "*.ll"))


def _bytes(array: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8).copy()
