r"""Where the weights of a checkpoint go: a table from their names to paths of parameters.

The first rule counts whose regular expression matches a name. Its path may refer to groups; the
number after `layers` is the layer's, one after `experts` says which of a stack of experts it is.

    Rule(name=r"(?:model\.)?(.+)", paths=(r"\1",))
    Rule(name=r"model\.(layers\.\d+)\.block_sparse_moe\.(experts\.\d+)\.w1\.weight",
         paths=(r"\1.mlp.\2.gate_proj.weight",))
    Rule(name=r"model\.(layers\.\d+)\.self_attn\.qkv_proj\.weight",      split: their rows in turn
         paths=(r"\1.self_attn.q_proj.weight", r"\1.self_attn.k_proj.weight", ...))
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jentropy.errors import UnsupportedError
from jentropy.formats import GROUP_INDEX, WHOLE, QuantizedTensor

Path = tuple[Any, ...]
LAYERS = "layers"  # first part of the paths of layers; next comes the number of their kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a weight is called in a checkpoint and in the model.

    Attributes:
      name: a regular expression for names of the checkpoint.
      paths: of the parameter in the model; several have the weight's rows in turn; none: the model
        does without it.
      transposed: whether the checkpoint has [in, out], and the model [out, in].
      interleaved: whether several paths take turns row by row.
    """

    name: str
    paths: tuple[str, ...]
    transposed: bool = False
    interleaved: bool = False


NAMES = (Rule(name=r"(?:model\.)?(.+)", paths=(r"\1",)),)  # of most architectures
_STACK = r"(?:model\.)?(layers\.\d+\.mlp\.experts)\."
# Of most that have experts, whose matrices are one by one or stacked, gate before up.
EXPERT_NAMES = (
    Rule(
        name=_STACK + "gate_up_proj",
        paths=(r"\1.gate_proj.weight", r"\1.up_proj.weight"),
    ),
    Rule(name=_STACK + "down_proj", paths=(r"\1.down_proj.weight",)),
    *NAMES,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a weight of a checkpoint, or some of its rows, goes.

    Attributes:
      path: of the parameter in the model's flat state.
      axes: sizes of the parameter's leading axes, which are a stack of layers, or of their experts.
      index: which weight of the stack it is.
      shape: of the weight in the checkpoint, all rows of it.
      rows: first one, and the one after the last, of the weight as the model has it; None: all.
      step: from one of these rows to the next.
      axis: that the rows lie along, as the model has it: -2 of matrices, -1 of vectors.
      transposed: whether the checkpoint has the transposed weight.
    """

    path: Path
    axes: tuple[int, ...] = ()
    index: tuple[int, ...] = ()
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    step: int = 1
    axis: int = -2
    transposed: bool = False

    def of_array(self, array: Any, block: int = 1) -> Any:
        """What of a weight's array goes there, or of a parameter's with an entry per `block` rows.

        Blocks divide the first row and are of one row where there is a step.
        """
        array = array.swapaxes(-1, -2) if self.transposed else array
        if self.rows is None or block == WHOLE:
            return array
        first, end = self.rows
        rows = slice(first // block, -(-end // block), self.step)
        return array[..., rows] if self.axis == -1 else array[..., rows, :]

    def of_quantized(self, weight: QuantizedTensor) -> QuantizedTensor:
        """The same of codes and parameters; blocks with rows of several parameters are halved.

        Raises:
          UnsupportedError: a transposed weight whose columns are of scattered groups; part of one
            that decodes only as a whole.
        """
        if not weight.number_format.is_elementwise:
            if self.rows is None and not self.transposed:
                return weight
            raise UnsupportedError(
                f"part of a weight of {weight.number_format.name}",
                expected="the whole, as it is stored",
                found="rows of it, or its transpose",
                hint="quantize the weights by the names that the model has for them",
            )
        made, codes, rank = weight.number_format, dict(weight.codes), len(weight.shape)
        if self.transposed and GROUP_INDEX in codes:
            raise UnsupportedError(
                "a weight with act-order", expected="[out, in]", found="[in, out]"
            )
        axis, first = rank + self.axis, self.rows[0] if self.rows else 0
        for parameter in made.parameters:
            blocks = list(parameter.blocks(rank))
            if self.transposed:
                blocks[-2:] = blocks[:-3:-1]
            array = codes[parameter.name]
            block = math.gcd(blocks[axis], first) if self.step == 1 else 1
            if blocks[axis] != WHOLE and block != blocks[axis]:
                stored = axis + 1 if self.transposed else axis
                array = np.repeat(array, blocks[axis] // block, stored)
                blocks[axis] = block
            codes[parameter.name] = self.of_array(array, blocks[axis])
            if parameter.block is not None:
                made = made.with_parameter(parameter.name, block=tuple(blocks))
        return QuantizedTensor(
            number_format=made, codes=codes | {"code": self.of_array(codes["code"])}
        )


def places(
    names: Iterable[str],
    rules: Sequence[Rule],
    parameters: Mapping[Path, tuple[int, ...]],
    members: Sequence[Sequence[int]],
) -> tuple[dict[str, list[Place]], list[str]]:
    """Where the weights of a checkpoint go.

    Args:
      names: of the weights.
      parameters: shapes by path, those of layers with the layers of their kind as first axis.
      members: of every kind of layers their numbers, see `kinds`.

    Returns:
      The places of every weight that has one which no weight before it took; and what no weight is
      for, by the names that most checkpoints have for it.
    """
    addresses = {}
    for path, shape in parameters.items():
        if path[0] != LAYERS:
            addresses[".".join(path)] = Place(path=path, shape=shape)
            continue
        for at, layer in enumerate(members[path[1]]):
            place = Place(path=path, axes=shape[:1], index=(at,), shape=shape[1:])
            addresses[".".join((LAYERS, str(layer), *path[2:]))] = place
    named: dict[str, list[Place]] = {}
    taken: set[tuple[Path, tuple[int, ...]]] = set()
    for name in names:
        matches = ((rule, re.fullmatch(rule.name, name)) for rule in rules)
        rule, match = next(((rule, match) for rule, match in matches if match), (None, None))
        if rule is None or match is None:
            continue
        parts = [_locate(match.expand(path), addresses) for path in rule.paths]
        located = [part for part in parts if part is not None]
        new = {(part.path, part.index) for part in located}
        if len(located) == len(parts) and taken.isdisjoint(new):
            taken |= new
            named[name] = _sharing(located, rule) if located else []
    missing = [
        address if address.startswith("lm_head") else f"model.{address}"
        for address, place in addresses.items()
        if (place.path, place.index) not in taken
        and not all((place.path, (*place.index, e)) in taken for e in range(place.shape[0]))
    ]
    return named, missing


def _locate(address: str, addresses: Mapping[str, Place]) -> Place | None:
    """The place at a rule's path; None if there is no such parameter."""
    before, *expert = re.split(r"(?<=\bexperts)\.(\d+)", address, maxsplit=1)
    place = addresses.get(before + "".join(expert[1:]))
    if place is None or not expert:
        return place
    experts, *shape = place.shape
    axes, index = (*place.axes, experts), (*place.index, int(expert[0]))
    return replace(place, axes=axes, index=index, shape=(*shape,)) if index[-1] < experts else None


def _sharing(ones: Sequence[Place], rule: Rule) -> list[Place]:
    """Places of one weight, which has the rows of all."""
    one = ones[0]
    of_experts = "experts" in one.path and len(one.index) == 1  # whose first axis they are
    axis = -2 if len(one.shape) - of_experts > 1 else -1
    heights, shape = [each.shape[axis] for each in ones], list(one.shape)
    shape[axis] = sum(heights)
    if rule.interleaved:
        rows, step = [(i, shape[axis]) for i in range(len(ones))], len(ones)
    else:
        ends = list(itertools.accumulate(heights, initial=0))
        rows, step = list(itertools.pairwise(ends)), 1
    if rule.transposed:
        shape[-2:] = shape[:-3:-1]
    return [
        replace(
            each,
            shape=tuple(shape),
            rows=part if len(ones) > 1 else None,
            step=step,
            axis=axis if len(ones) > 1 else each.axis,
            transposed=rule.transposed,
        )
        for each, part in zip(ones, rows, strict=True)
    ]


def left_out(first: int, count: int) -> tuple[Rule, ...]:
    """Rules for layers after the last, which predict further tokens: the model does without.

    Args:
      first: number of the first one.
      count: how many there are.
    """
    numbers = range(first, first + count)
    return tuple(Rule(name=rf"(?:model\.)?layers\.{n}\..+", paths=()) for n in numbers)
