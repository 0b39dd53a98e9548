"""What a resident layout is: how weights lie in device memory, and the kernels that read them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from jentropy.formats import Format

from .matrices import Matrices, Packed

Extent = tuple[tuple[int, int], tuple[int, int]]  # rows and columns; what each is padded to


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How x [rows, k] is multiplied by a packed matrix; backends add what their kernels need.

    Attributes:
      fused: by the fused kernel; else the weight is decoded and multiplied densely.
      few: rows of x are so few that a dense weight keeps all of its bits.
      passes: over the weight, each for `m` rows of x.
      m, k, n: padded to tiles.
    """

    fused: bool
    few: bool
    passes: int
    m: int
    k: int
    n: int

    def x_shape(self, rows: int, columns: int, *, interpret: bool) -> tuple[int, int]:
        """What x of so many rows and columns is padded to before kernels read it."""
        del rows, columns, interpret
        return self.passes * self.m, self.k


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The Pallas kernels of a layout. Each reads a single matrix, or one where it lies in a stack.

    Attributes:
      plan: (weight, rows of x, target) -> Plan, by arithmetic alone; without a target of this
        process's device.
      multiply: (x, weight, plan, product) -> y [m, n]: bfloat16 x times the packed matrix, x as
        `Plan.x_shape` says, y padded or not, summed in float32; float32, or `product.out_dtype`.
      decode: (weight, dtype, interpret) -> the packed matrix, padded.
      grouped: (x, stack, group_sizes, product) -> y [rows, n], as `grouped_matmul` has them and
        not padded; None, also of what it gives for a weight: matrix after matrix by the others.
      grouped_plan: (stack, rows of x, target) -> how `grouped` goes over them, as `plan`.
      decode_tile: (weight) -> rows and columns of a step of `decode`; None: it has no steps.
    """

    plan: Callable[..., Any]
    multiply: Callable[..., Any]
    decode: Callable[..., Any]
    grouped: Callable[..., Any] | None = None
    grouped_plan: Callable[..., Any] | None = None
    decode_tile: Callable[..., tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How matrices of some formats lie in memory, packed as they are stored or transposed.

    Functions get a single packed matrix as a `ResidentTensor`, but for those of `Matrices`.

    Attributes:
      name: its key in `LAYOUTS`, and its folder.
      backend: whose kernels read it.
      reduces: the axis, -1 or -2, of what it packs that products sum over: `to_resident` transposes
        the matrix so that they do; None if that is all the same.
      stacked: one of its arrays, and the axes that this has for a single matrix.
      columns, rows: axes of arrays, from the last, that a mesh may split, by what runs along them.
      lists: arrays whose sizes depend on codes: the axis, from the last, that they grow along, and
        what fills them up, over and over.
      unread: arrays that no product needs, but `decode` does.
      largest: options that serve a whole stack where they are the largest of any matrix.
      holds: (number format) -> whether it can hold its matrices.
      shapes: (matrices) -> arrays without data and options that `pack` makes of Gaussian weights,
        or None; a function of shapes alone.
      pack: (matrices) -> arrays and options, or None if these codes cannot be held.
      extent: (weight) -> rows and columns that the arrays hold, and what each was padded to.
      decode: (weight, dtype) -> the packed matrix, padded or not, in plain JAX: what kernels are
        held to.
      take: (weight, ids, dtype) -> rows of the packed matrix, or columns of one that sums over its
        rows, without decoding the others.
      blocks: (weight) -> how many blocks of rows the packed matrix has, and what gives the rows of
        one in float32 (see `row_blocks`): products on CPU; None: they decode all of it.
      has_kernels: whether Pallas kernels read it, `KERNELS` of `kernels.py` in its folder; if not,
        products decode.
    """

    name: str
    backend: str
    reduces: int | None = None
    stacked: tuple[str, int]
    columns: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    lists: Mapping[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    largest: tuple[str, ...] = ()
    holds: Callable[[Format], bool]
    shapes: Callable[[Matrices], Packed | None]
    pack: Callable[[Matrices], Packed | None]
    extent: Callable[[Any], Extent]
    decode: Callable[[Any, Any], Any]
    take: Callable[[Any, Any, Any], Any]
    blocks: Callable[[Any], tuple[int, Callable[..., Any]]] | None = None
    has_kernels: bool = False

    def takes(self, number_format: Format) -> bool:
        """Whether it can hold matrices of a format: no kernel has decoders or transforms."""
        return (number_format.is_elementwise or not self.has_kernels) and self.holds(number_format)

    def kernels(self) -> Kernels:
        """Its Pallas kernels, whose compilers are imported here."""
        assert self.has_kernels, self.name
        module = importlib.import_module(f"{__package__}.{self.name}.kernels")
        return cast(Kernels, module.KERNELS)
