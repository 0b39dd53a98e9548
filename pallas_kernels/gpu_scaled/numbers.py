"""What fused products and `decode` share: codes in shared memory to BF16 in WGMMA's registers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from jentropy.pallas_kernels.hopper import fragments, registers
from jentropy.pallas_kernels.hopper.dense import WIDTH
from jentropy.pallas_kernels.integers import offset_of
from jentropy.pallas_kernels.resident import ResidentTensor

from .blocks import GROUPS, Kind
from .elements import ELEMENTS, EXCESS, FRAGMENTS, Element
from .layout import kind_of
from .scales import EXACT_PLACE, SIXTEENTHS_PLACE, SIXTEENTHS_POWER

TWICE = 0x00010001  # times 16 bits: both halves of a word have them
ARRAYS, ROWS = ("words", "scale", "zero"), ("row", "row_zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a tile and a step have in registers.

    Attributes:
      row: float32[64].
      row_zero: bfloat16[64, 64].
      scales, zeros: of a step, by their units; as the arrays have them.
    """

    row: Any = None
    row_zero: Any = None
    scales: tuple[Any, ...] = ()
    zeros: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How a weight's codes become numbers.

    Attributes:
      element, kind, group: see there.
      offset: what a stored integer is above its number, without zero points.
      names: of the arrays that there are.
      shared: whether 64 rows share the scales.
      interpret: in interpret mode.
    """

    element: Element
    kind: Kind
    group: int
    offset: int
    names: tuple[str, ...]
    shared: bool
    interpret: bool

    @classmethod
    def of(cls, weight: ResidentTensor, interpret: Any) -> Decoding:
        """Of a weight."""
        element, kind = weight.number_format.element, kind_of(weight)
        return cls(
            element=ELEMENTS[element.name],
            kind=kind,
            group=weight.option("group"),
            offset=offset_of(element),
            names=tuple(name for name in (*ARRAYS, *ROWS) if name in weight.arrays),
            shared="scale" in weight.arrays and weight.arrays["scale"].shape[-1] != fragments.ROWS,
            interpret=bool(interpret),
        )

    def copied(self) -> list[str]:
        """Names of the arrays that are copied to shared memory."""
        return [name for name in ARRAYS if name in self.names]

    def columns(self) -> list[int]:
        """Of a unit of each."""
        scales = 4 * self.group if self.kind in GROUPS else self.group
        of = {"words": fragments.BLOCK, "scale": scales, "zero": self.group}
        return [of[name] for name in self.copied()]

    def rows(self) -> list[str]:
        """Names of the arrays that are read where a tile begins."""
        return [name for name in ROWS if name in self.names]

    def begin(self, load_rows: Any) -> State:
        """Of a tile."""
        loaded = {name: load_rows(i) for i, name in enumerate(self.rows())}
        if "row_zero" in loaded:
            loaded["row_zero"] = registers.columns_of(loaded["row_zero"], fragments.BLOCK)
        return State(**loaded)

    def prepare(self, state: State, load: Any, columns: int) -> State:
        """Of a step of so many columns: all scales and zero points."""
        units = dict(zip(self.copied(), self.columns(), strict=True))

        def every(name: str) -> tuple[Any, ...]:
            if name not in units:
                return ()
            i, shared = self.copied().index(name), self.shared and name == "scale"
            count = columns // units[name]
            if shared:
                return tuple(load(i, (u, 0)) for u in range(count))
            return tuple(load(i, (u,), registers.ROW_LAYOUT) for u in range(count))

        return replace(state, scales=every("scale"), zeros=every("zero"))

    def words(self, load: Any, b: int) -> list[Array]:
        """Of block b of a step."""
        parts = (
            pl.ds(fragments.REGISTERS * i, fragments.REGISTERS) for i in range(self.element.words)
        )
        return [load(0, (b, part), registers.STRIDED) for part in parts]

    def pieces(self, state: State, words: list[Array], b: int) -> list[Array]:
        """Block b of a step in BF16, exactly; in pieces of a group, if its sums are scaled."""
        placed, less = self.element.place(words)
        width = fragments.BLOCK
        if self.kind is Kind.NUMBERS:
            width = min(self.group, width)
        step = width // fragments.COLUMNS
        return [
            self._piece(
                state,
                range(FRAGMENTS * b + f, FRAGMENTS * b + f + step),
                placed[f : f + step],
                less and less[f : f + step],
                scaled=True,
            )
            for f in range(0, FRAGMENTS, step)
        ]

    def _piece(self, state: State, which: range, placed: Any, less: Any, *, scaled: bool) -> Array:
        """Some fragments of a step; with E4M3 scales or without."""
        interpret, power = self.interpret, self.element.power
        if self.element.tiny:
            factor: Any = power
            if self.kind is Kind.POWERS:
                factor = [self._byte(state, f) * np.uint32(TWICE << 7) for f in which]
            elif self.kind is Kind.SIXTEENTHS and scaled:
                place = np.uint32(SIXTEENTHS_PLACE * TWICE)
                factor = [self._byte(state, f) * np.uint32(TWICE << 4) + place for f in which]
            return registers.scaled(placed, factor, interpret=interpret)
        addend: Any = -(2.0**-self.element.unit) * self.offset
        if state.row_zero is not None:
            addend = state.row_zero
        elif state.zeros:
            own = [state.zeros[f * fragments.COLUMNS // self.group] for f in which]
            own = [zero.astype(jnp.uint32) * np.uint32(TWICE) + EXCESS for zero in own]
            of_rows = registers.of_rows(own, interpret=interpret)  # 128 more than zero points
            unit = 2.0**-self.element.unit
            addend = registers.multiply_add(of_rows, -unit, 128 * unit, interpret=interpret)
        if less is None:
            return registers.multiply_add(
                registers.to_fragments(tuple(placed), interpret=interpret),
                2.0**power,
                addend,
                interpret=interpret,
            )
        numbers, less = (
            registers.to_fragments(tuple(w), interpret=interpret) for w in (placed, less)
        )
        numbers -= less
        if isinstance(addend, float):
            return numbers + ml_dtypes.bfloat16(addend) if addend else numbers
        return numbers + addend

    def _byte(self, state: State, fragment: int) -> Array:
        """The scale of a fragment, a byte of four."""
        group = fragment * fragments.COLUMNS // self.group
        word = state.scales[group // 4]
        shift = np.uint32(8 * (group % 4))
        return (word >> shift if shift else word) & np.uint32(0xFF)

    def scale(self, state: State, g: int) -> Array:
        """Of group g of a step."""
        return state.scales[g].astype(jnp.float32)

    def finish(self, state: State, total: Array) -> Array:
        """What sums over all columns are of the product."""
        unit = np.float32(2.0**self.element.unit)
        if state.row is not None:
            row = state.row * unit if self.element.unit else state.row
            return total * registers.columns_of(row, total.shape[1])
        return total * unit if self.element.unit else total

    def dense(self, state: State, load: Any, b: int) -> Array:
        """Block b of a step in float32, as `layout.decode` has it."""
        state = self.prepare(state, load, WIDTH)
        which = range(FRAGMENTS * b, FRAGMENTS * (b + 1))
        numbers = self._piece(state, which, *self.element.place(self.words(load, b)), scaled=False)
        scales: Any
        if self.kind in (Kind.ROW, Kind.POWERS):
            scales = registers.columns_of(state.row, fragments.BLOCK)
        elif self.shared:
            scales = state.scales[b * fragments.BLOCK // self.group]
        elif self.kind is Kind.NUMBERS:
            scales = registers.of_rows(
                [self.scale(state, f * fragments.COLUMNS // self.group) for f in which],
                interpret=self.interpret,
            )
        else:
            own = state.row * np.float32(2.0**-SIXTEENTHS_POWER)
            exact = [(self._byte(state, f) << 20) + np.uint32(EXACT_PLACE << 16) for f in which]
            of_groups = [lax.bitcast_convert_type(bits, jnp.float32) * own for bits in exact]
            scales = registers.of_rows(of_groups, interpret=self.interpret)
        if self.element.unit:
            scales *= np.float32(2.0**self.element.unit)
        return numbers.astype(jnp.float32) * scales
