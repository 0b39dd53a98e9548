"""How a product with a resident weight runs on a Hopper GPU: fused or by way of a dense one.

Pure arithmetic on sizes; nothing here touches a device.

The fused kernel cuts the weight into tiles of 128 or 256 rows (its outputs), a tile into steps of
`tile_k` columns. Multiprocessors get whole tiles in rounds. What is left over, or everything where
a round would leave some of them idle, follows in one line of steps that is dealt in equal pieces
("stream-K"). A tile that is cut has several parts, which are added in the order of their steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy.pallas_kernels.layout import Plan
from jentropy.pallas_kernels.targets import Gpu
from jentropy.pallas_kernels.tiles import ceil_to

TILE_N = 128  # rows of the weight that a block of threads multiplies: 64 to each warpgroup
LEAST_STAGES = {1: 2, 2: 3}  # by height, which is times these
WARPGROUPS = 2  # that multiply; a third one copies
ROWS = 8  # M is padded to these: columns of the smallest WGMMA
MOST_ROWS = 256  # of x in one pass over the weight: columns of the largest
COPIED_COLUMNS = 16  # of x that lie together in shared memory
UNIT = 128  # columns that every tile is a multiple of
TILES_K = (512, 256, 128)
TALL_ROWS = (128, 128, 128)  # of x with tiles of 256 rows, by `TILES_K`
MOST_STAGES = 8
LATENCY_SECONDS = 1e-6  # of memory under load
STEP_SECONDS = 2e-8  # that a step of 128 rows costs whatever its length: barriers
PARTS_SECONDS = 1.5e-6  # that tiles in parts cost: the last of them are added when all is done
RESERVED_BYTES = 2048  # of shared memory: barriers, and alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What plans must know of packed weights.

    Attributes:
      unit_bytes: of 128 x 128 weights, with everything that is copied beside them.
      tiles_k: columns of a step that are tried, of `TILES_K`.
      most_rows: of x in one pass over the weight.
      tall_rows: of x with tiles of 256 rows, by the columns of a step, `TILES_K`: registers hold
        the sums of both halves.
    """

    unit_bytes: int
    tiles_k: tuple[int, ...] = TILES_K
    most_rows: int = MOST_ROWS
    tall_rows: tuple[int, ...] = TALL_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What tuning decides.

    Attributes:
      tile_k: columns of a step: longer ones wait less often, shorter ones fit more stages.
      stages: steps whose copies are under way or being multiplied.
      rounds: of whole tiles that are dealt, before the rest is cut; enough of them cut nothing.
      height: blocks of 64 rows that a warpgroup has of a tile: for taller ones x is read less
        often, which many rows of it or few bits of weights wait for; they take registers, stages.
    """

    tile_k: int
    stages: int
    rounds: int = 0
    height: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HopperPlan(Plan):
    """A product of x [m, k] with packed weights [n, k].

    Attributes:
      result: rows and columns of the product that are no padding.
      traits: of the weights.
      config: tiles and stages.
      blocks: of threads, one to a multiprocessor.
      shared_bytes: that each takes.
    """

    result: tuple[int, int]
    traits: Traits
    config: Config
    blocks: int
    shared_bytes: int

    def x_shape(self, rows: int, columns: int, *, interpret: bool) -> tuple[int, int]:
        """What x of few rows lacks of a step the copy engine fills with zeros; not interpreted."""
        if interpret or self.passes > 1:
            return Plan.x_shape(self, rows, columns, interpret=interpret)
        return rows if rows < ROWS else self.m, self.k if columns % COPIED_COLUMNS else columns

    @property
    def steps(self) -> int:
        """Of a tile."""
        return self.k // self.config.tile_k

    @property
    def tile_n(self) -> int:
        """Rows of a tile."""
        return TILE_N * self.config.height

    @property
    def tiles(self) -> int:
        """Of the weight's rows."""
        return self.n // self.tile_n

    @property
    def unit(self) -> int:
        """Steps of the line that stay together: all of a tile where rounds cover everything."""
        return self.steps if self.config.rounds * self.blocks >= self.tiles else 1

    @property
    def dealt(self) -> int:
        """Tiles that are dealt in rounds; they come first."""
        rounds = self.config.rounds * self.blocks
        return rounds if rounds < self.tiles else 0

    @property
    def line(self) -> int:
        """Steps of the other tiles."""
        return (self.tiles - self.dealt) * self.steps

    @property
    def dealers(self) -> int:
        """Blocks of threads that the line is dealt to: none gets nothing where others get some."""
        return min(self.blocks, self.line // self.unit)

    @property
    def longest(self) -> int:
        """Steps of the block of threads that has the most."""
        units = self.line // self.unit
        return self.rounds_of(0) * self.steps + -(-units // self.dealers) * self.unit

    # What follows takes integers or arrays of them.

    def rounds_of(self, block: Any) -> Any:
        """Whole tiles that a block of threads gets: `block`, `block + blocks` and so on."""
        return (self.dealt - block + self.blocks - 1) // self.blocks

    def first_of(self, block: Any) -> Any:
        """Where in the line a block of threads begins; where the one before it ends."""
        dealer = (jnp if isinstance(block, jax.Array) else np).minimum(block, self.dealers)
        return dealer * (self.line // self.unit) // self.dealers * self.unit

    def block_of(self, step: Any) -> Any:
        """The block of threads that takes a step of the line."""
        return ((step // self.unit + 1) * self.dealers - 1) // (self.line // self.unit)

    def parts_of(self, tile: int) -> int:
        """Blocks of threads that work on a tile."""
        if tile < self.dealt:
            return 1
        first = (tile - self.dealt) * self.steps
        return self.block_of(first + self.steps - 1) - self.block_of(first) + 1

    @property
    def parts(self) -> int:
        """The most parts of any tile."""
        return max(self.parts_of(tile) for tile in range(self.tiles))


def make_plan(
    *, m: int, k: int, n: int, traits: Traits, target: Gpu, config: Config | None = None
) -> HopperPlan:
    """Plans a product.

    Args:
      m: rows of x, all parts of a full-precision one counted.
      k, n: of the weight.
      traits: of its layout.
      target: the GPU.
      config: a tuned one; None estimates the best.
    """
    few, passes = m <= target.fused_rows, max(1, -(-m // traits.most_rows))
    columns = n
    rows, k, n = ceil_to(-(-m // passes), ROWS), ceil_to(k, UNIT), ceil_to(n, TILE_N)

    def of(config: Config) -> HopperPlan:
        tiles, steps = n // (TILE_N * config.height), k // config.tile_k
        return HopperPlan(
            fused=few and m > 0,
            few=few,
            passes=passes,
            m=rows,
            k=k,
            n=n,
            result=(m if passes == 1 else rows, columns),
            traits=traits,
            config=config,
            blocks=min(target.multiprocessors, tiles if config.rounds else tiles * steps),
            shared_bytes=RESERVED_BYTES + config.stages * stage_bytes(rows, config, traits),
        )

    if config is not None:
        return of(config)
    chosen = [of(c) for c in configs(m=rows, k=k, n=n, traits=traits, target=target)]
    if not chosen:  # lists too long for shared memory
        return replace(of(Config(tile_k=UNIT, stages=1)), fused=False)
    return min(chosen, key=lambda plan: estimated_seconds(plan, target))


def step_bytes(config: Config, traits: Traits) -> int:
    """Weights of a step, and what comes with them."""
    return config.tile_k // UNIT * config.height * traits.unit_bytes


def stage_bytes(m: int, config: Config, traits: Traits) -> int:
    """Shared memory of a step: x as well."""
    return m * config.tile_k * 2 + step_bytes(config, traits)


def configs(*, m: int, k: int, n: int, traits: Traits, target: Gpu) -> Iterator[Config]:
    """Everything that fits, of each tile with as many stages as there is room for."""
    for tile_k, (height, least) in itertools.product(traits.tiles_k, LEAST_STAGES.items()):
        one = Config(tile_k=tile_k, stages=1, height=height)
        room = (target.shared_bytes - RESERVED_BYTES) // stage_bytes(m, one, traits)
        fits = height == 1 or m <= traits.tall_rows[TILES_K.index(tile_k)]
        if k % tile_k == 0 and n % (TILE_N * height) == 0 and fits and room >= least:
            most, left = divmod(n // (TILE_N * height), target.multiprocessors)
            for rounds in sorted({0, most, most + (most > 0 and left > 0)}):
                yield replace(one, stages=min(room, MOST_STAGES), rounds=rounds)


def estimated_seconds(plan: HopperPlan, target: Gpu) -> float:
    """Time of a pass: the longest piece of the line, and what adding parts takes.

    Memory is kept busy by the weights of steps that are under way, one of them being multiplied;
    the cache has to deliver them and x.
    """
    config, weights = plan.config, step_bytes(plan.config, plan.traits)
    wanted = LATENCY_SECONDS * target.bytes_per_second / target.multiprocessors
    busy = min(1.0, (config.stages - 1) * weights / wanted)
    moved = weights / (busy * target.bytes_per_second)
    cached = stage_bytes(plan.m, config, plan.traits) / target.cache_bytes_per_second
    multiplied = 2 * plan.m * plan.tile_n * config.tile_k / target.flops_per_second
    step = target.multiprocessors * max(moved, cached, multiplied) + STEP_SECONDS * config.height
    return plan.longest * step + (PARTS_SECONDS if plan.parts > 1 else 0.0)
