"""Bundles of a visit of a grouped product on TPU, as `tpu` has them of plain products.

A visit multiplies a window of rows by a column tile of a group's matrix, or by as many of its rows
as a block has. Memory moves that block's bytes once for each group with rows: a second visit of a
group costs bundles alone. Rows and results, which XLA keeps on the chip, are copied there once for
all visits of a chunk of rows, each of which has its share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy.formats import Format
from jentropy.pallas_kernels.conversion import to_resident
from jentropy.pallas_kernels.fused import Product, as_read, kernels_of
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.targets import TPUS, taken_for
from jentropy.pallas_kernels.tpu_window12.layout import chunks_of
from jentropy.pallas_kernels.variants import VARIANTS, abstract_weight

from . import compiling, schedule
from .budgets import TOKENS_OF_LAYERS, name_of_experts
from .tpu import Figures, kernel_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Matrices [groups, n, k] of experts, of which a token has some."""

    k: int
    n: int
    groups: int
    chosen: int

    def active(self, tokens: int) -> float:
        """Experts that so many tokens are expected to choose."""
        return self.groups * (1 - (1 - self.chosen / self.groups) ** tokens)


# From each model's config.json on Hugging Face.
LAYERS = dict(
    zip(
        TOKENS_OF_LAYERS,
        (
            Layer(k=2880, n=2880, groups=128, chosen=4),
            Layer(k=7168, n=2048, groups=256, chosen=8),
            Layer(k=2048, n=7168, groups=256, chosen=8),
        ),
        strict=True,
    )
)


def product_of(
    number_format: Format, layer: Layer, tokens: int, target: str
) -> tuple[Any, Any, tuple[Any, ...]]:
    """A stack of experts without data, how tokens are multiplied by it, and what to compile.

    Returns:
      The stack, its `GroupedPlan`, and the function of x, the stack and sizes of groups with these.
    """
    rows = tokens * layer.chosen
    with taken_for(target):
        abstract = abstract_weight(number_format, (layer.groups, layer.n, layer.k))
        stack = to_resident(abstract, "tpu")
    assert isinstance(stack, ResidentTensor), number_format
    weight, kernels = as_read(stack), kernels_of(stack)
    assert kernels.grouped is not None
    assert kernels.grouped_plan is not None
    run = kernels.grouped
    product = Product(
        transpose_w=weight.transposed,
        x_dtype=np.dtype(jnp.bfloat16),
        out_dtype=np.dtype(jnp.float32),
    )
    x = jax.ShapeDtypeStruct((rows, layer.k), jnp.bfloat16)
    sizes = jax.ShapeDtypeStruct((layer.groups,), jnp.int32)
    plan = kernels.grouped_plan(weight, rows, TPUS[target])
    return weight, plan, (lambda x, w, sizes: run(x, w, sizes, product), x, weight, sizes)


def measure(dump: Path, target: str, number_format: Format, layer: Layer, tokens: int) -> Figures:
    """Compiles the product of tokens with a layer of experts, and reads a visit's schedule.

    Returns:
      Figures whose `m` is the rows of a window.
    """
    weight, plan, work = product_of(number_format, layer, tokens, target)
    compiling.empty(dump)
    compiling.compile_for(target, *work)
    tile, blocks = plan.tile, plan.steps // plan.depth
    step = tile.tile_k * plan.depth, tile.tile_n
    inline = dict(weight.options).get("inline")
    rest = 0 if inline is None else max(0, chunks_of(tile.tile_k * tile.tile_n) - inline)
    share = step[0] * step[1] / (tile.k * tile.n)
    visits = max(1, layer.active(tokens) / plan.chunks)
    name = kernel_name("grouped", weight)
    return Figures(
        m=tile.m,
        tile=step,
        schedule=schedule.read(dump, name, steps=blocks, trips=rest, copied=visits),
        hbm_cycles=TPUS[target].hbm_cycles(weight.nbytes / layer.groups * share),
    )


def measured(
    dump: Path,
    target: str,
    names: Sequence[str],
    layers: Sequence[str],
    tokens: Sequence[int] = (),
) -> Iterator[tuple[str, Figures]]:
    """Products of tokens with layers of experts, keys of `LAYERS`, by names of budgets.

    Args:
      tokens: none: those that have budgets.
    """
    for name, layer in itertools.product(names, layers):
        for count in tokens or TOKENS_OF_LAYERS[layer]:
            figures = measure(dump, target, VARIANTS[name].number_format, LAYERS[layer], count)
            yield name_of_experts(name, layer, count), figures
