"""Where the weights of a checkpoint go: a table from their names to paths of parameters.

In the names and paths of a rule `{layer}` and `{expert}` stand for numbers, `{rest}` for anything;
the first rule that fits a parameter counts.

    Rule("lm_head.{rest}", "lm_head.{rest}")
    Rule("model.{rest}", "{rest}")
    Rule("model.layers.{layer}.mlp.experts.{expert}.w1.weight",    a stack of experts: the model
         "layers.{layer}.mlp.experts.gate_proj.weight")            has no number of one
    Rule("model.layers.{layer}.self_attn.qkv_proj.weight",         split: the rows of one weight
         "layers.{layer}.self_attn.q_proj.weight", ...)            are those of several in turn
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jentropy.errors import UnsupportedError
from jentropy.formats import GROUP_INDEX, WHOLE, QuantizedTensor

Path = tuple[Any, ...]
LAYERS = "layers"  # first part of the paths of layers; next comes their kind, or their number
_PLACEHOLDERS = {"layer": r"\d+", "expert": r"\d+", "rest": ".+"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a weight is called in a checkpoint and in the model.

    Attributes:
      name: in the checkpoint.
      paths: of the parameter in the model; several have the weight's rows in turn.
      transposed: whether the checkpoint has [in, out], and the model [out, in].
    """

    name: str
    paths: tuple[str, ...]
    transposed: bool = False

    def fits(self, path: str) -> dict[str, str] | None:
        """What the placeholders stand for in a parameter's path; None if it is another's."""
        matches = (_pattern(own).fullmatch(path) for own in self.paths)
        return next((match.groupdict() for match in matches if match), None)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # text and placeholders in turn
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [f"(?P<{name}>{_PLACEHOLDERS[name]})" for name in parts[1::2]]
    return re.compile("".join(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a weight of a checkpoint, or some of its rows, goes.

    Attributes:
      path: of the parameter in the model's flat state.
      layer: number of the layer; None: it is of no layer.
      axes: sizes of the parameter's leading axes that are a stack of weights.
      index: which weight of the stack it is.
      shape: of the weight in the checkpoint, all rows of it.
      rows: first one, and the one after the last, of the weight as the model has it; None: all.
      transposed: whether the checkpoint has the transposed weight.
    """

    path: Path
    layer: int | None
    axes: tuple[int, ...]
    index: tuple[int, ...]
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def of_array(self, array: Any, block: int = 1) -> Any:
        """What of a weight's array goes there, or of a parameter's with `block` rows an entry."""
        array = array.swapaxes(-1, -2) if self.transposed else array
        if self.rows is None or block == WHOLE:
            return array
        first, end = self.rows
        if first % block:
            raise UnsupportedError("rows of a weight", expected=f"blocks of {block}", found=first)
        rows = slice(first // block, -(-end // block))
        return array[rows] if array.ndim == 1 else array[..., rows, :]

    def of_quantized(self, weight: QuantizedTensor) -> QuantizedTensor:
        """The same of codes and parameters."""
        if self.rows is None and not self.transposed:
            return weight
        if self.transposed and GROUP_INDEX in weight.codes:
            raise UnsupportedError("groups of columns", expected="[out, in]", found="[in, out]")
        codes = {**weight.codes, "code": self.of_array(weight.codes["code"])}
        parameters = []
        for parameter in weight.number_format.parameters:
            *before, rows, columns = parameter.blocks(len(weight.shape))
            rows, columns = (columns, rows) if self.transposed else (rows, columns)
            codes[parameter.name] = self.of_array(codes[parameter.name], rows)
            parameters.append(replace(parameter, block=(*before, rows, columns)))
        number_format = replace(weight.number_format, parameters=tuple(parameters))
        return QuantizedTensor(number_format=number_format, codes=codes)


def places(
    parameters: Mapping[Path, tuple[int, ...]],
    members: Sequence[Sequence[int]],
    rules: Sequence[Rule],
) -> dict[str, list[Place]]:
    """Every weight that a model needs, by its name in the checkpoint.

    Args:
      parameters: shapes by path, those of layers with the layers of their kind as first axis.
      members: of every kind of layers their numbers, see `kinds.Kinds`.
      rules: one fits every parameter.
    """
    by_path = {}
    for path, shape in parameters.items():
        if path[0] != LAYERS:
            by_path[".".join(path)] = Place(path=path, layer=None, axes=(), index=(), shape=shape)
            continue
        for at, layer in enumerate(members[path[1]]):
            place = Place(path=path, layer=layer, axes=shape[:1], index=(at,), shape=shape[1:])
            by_path[".".join((LAYERS, str(layer), *path[2:]))] = place
    named: dict[str, list[Place]] = {}
    for path, place in by_path.items():
        rule, values = next((r, v) for r in rules if (v := r.fits(path)) is not None)
        siblings = [by_path[own.format(**values)] for own in rule.paths]
        stacked = "{expert}" in rule.name and "expert" not in values
        for expert in range(place.shape[0]) if stacked else (0,):
            name = rule.name.format(**{"expert": expert, **values})
            named.setdefault(name, []).append(
                _one(place, siblings, rule, expert if stacked else None)
            )
    return named


def _one(place: Place, siblings: Sequence[Place], rule: Rule, expert: int | None) -> Place:
    """The place of one of several experts, and of one of the parameters that share a weight."""
    if expert is not None:
        axes, index = (*place.axes, place.shape[0]), (*place.index, expert)
        place = replace(place, axes=axes, index=index, shape=place.shape[1:])
    shape, axis, rows = list(place.shape), max(len(place.shape) - 2, 0), None
    if len(siblings) > 1:
        heights = [one.shape[axis - len(shape)] for one in siblings]
        first = sum(heights[: [one.path for one in siblings].index(place.path)])
        rows, shape[axis] = (first, first + shape[axis]), sum(heights)
    shape = [*shape[:-2], *shape[:-3:-1]] if rule.transposed else shape
    return replace(place, shape=tuple(shape), rows=rows, transposed=rule.transposed)
