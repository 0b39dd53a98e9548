"""Products of rows with experts on Hopper, as `hopper` has those with one matrix.

Steps of all visits are dealt to the multiprocessors alike. Memory moves a matrix once for each
group with rows, which is what is predicted; the small kernels that make the table of visits are not
in the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jentropy.formats import Format
from jentropy.pallas_kernels.conversion import to_resident
from jentropy.pallas_kernels.fused import Product, kernels_of
from jentropy.pallas_kernels.hopper import fragments
from jentropy.pallas_kernels.targets import GPUS
from jentropy.pallas_kernels.variants import VARIANTS, abstract_weight

from . import pace
from .budgets import TOKENS, name_of_experts
from .hopper import Figures, code_of
from .tpu_grouped import LAYERS, Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits(Figures):
    """What is known of the visits of tokens to a layer of experts; `plan` is that of one.

    Attributes:
      visits: that are expected, of whole matrices.
      target: the GPU.
    """

    visits: float
    target: str

    def times(self) -> dict[str, float]:
        """Seconds that all visits are predicted to take, by what takes them."""
        gpu = GPUS[self.target]
        steps = self.visits * self.plan.tiles * self.plan.steps
        longest = max(1, round(steps / gpu.multiprocessors))
        return pace.seconds(self.plan, self.pace, gpu, longest)


def measure(
    dump: Path, target: str, number_format: Format, layer: Layer, tokens: int = TOKENS
) -> Visits:
    """Compiles the product of tokens with a layer of experts, and reads its code."""
    shape = layer.groups, layer.n, layer.k
    weight = to_resident(abstract_weight(number_format, shape), "gpu")
    kernels, rows = kernels_of(weight), tokens * layer.chosen
    assert kernels.grouped is not None
    assert kernels.grouped_plan is not None
    dtype = np.dtype(jnp.bfloat16)
    product = Product(transpose_w=True, x_dtype=dtype, out_dtype=dtype)
    run = partial(kernels.grouped, product=product)
    x = jax.ShapeDtypeStruct((rows, layer.k), dtype)
    sizes = jax.ShapeDtypeStruct((layer.groups,), jnp.int32)
    (kernel,) = code_of(dump, target, lambda x, w, s: run(x, w, s), x, weight, sizes)
    plan = kernels.grouped_plan(weight, rows, GPUS[target])
    products = plan.config.height * plan.config.tile_k // fragments.COLUMNS
    return Visits(
        m=plan.m,
        plan=plan,
        kernel=kernel,
        loop=kernel.main_loop(products),
        visits=layer.active(tokens),
        target=target,
    )


def measured(
    dump: Path,
    target: str,
    names: Sequence[str],
    layers: Sequence[str],
    tokens: Sequence[int] = (),
) -> Iterator[tuple[str, Visits]]:
    """Products of tokens with layers of experts, keys of `LAYERS`, by names of budgets.

    Args:
      tokens: none: 16, which have budgets.
    """
    for name, layer, count in itertools.product(names, layers, tokens or (TOKENS,)):
        figures = measure(dump, target, VARIANTS[name].number_format, LAYERS[layer], count)
        yield name_of_experts(name, layer, count), figures
