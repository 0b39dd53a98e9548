"""A model whose layers round their inputs, for what it loses by that; see `rounded_inputs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import nnx

from jentropy import formats
from jentropy.checkpoints import Checkpoint
from jentropy.errors import UnsupportedError
from jentropy.formats import FP32, INT4_GROUP, INT8_ROW, NVFP4, Step

from .decoder import Decoder
from .experts import Projection, Router
from .layers import Linear
from .matrices import Matrices, Part, located
from .names import LAYERS, Path
from .rounded_inputs import SPACES, Inputs, Rounded, is_of_inputs

NONE = "none"
ACTIVATIONS: dict[str, Inputs | None] = {
    NONE: None,
    "int8": Inputs(number_format=INT8_ROW.with_parameter("scale", element=FP32)),
    "fp8": Inputs(number_format=formats.FP8_ROW),
    "nvfp4": Inputs(number_format=NVFP4),
    "mxfp4": Inputs(number_format=formats.MXFP4),
    # ARCQuant's residuals, and COMET's blocks of 4 and of 8 bits.
    "nvfp4-residual": Inputs(number_format=NVFP4, leading=NVFP4, added=True),
    "int4-int8": Inputs(
        number_format=INT4_GROUP,
        leading=INT8_ROW.with_parameter("scale", block=(128,)),
    ),
    "sparse": Inputs(kept=0.5),  # TEAL's, half of every token
}


def simulated(model: Decoder, name: str, checkpoint: Checkpoint | None = None) -> Decoder:
    """The model, whose layers round what their projections are given.

    Routers and the output projection are left as they are.

    Args:
      model: is changed.
      name: a key of `ACTIVATIONS`.
      checkpoint: that it was loaded from, see `rounding`.

    Returns:
      The same model.

    Raises:
      UnsupportedError: another name; see `rounding`.

    Example:
      >>> from jentropy import models
      >>> model = simulated(models.load(models.BUNDLED), "int8")
      >>> model.layers[0].mlp.up_proj.around.inputs.number_format.name
      'INT8'
    """
    if name not in ACTIVATIONS:
        raise UnsupportedError("activations", expected=" or ".join(ACTIVATIONS), found=name)
    if checkpoint is None or ACTIVATIONS[name] is None:
        return rounding(model, ACTIVATIONS[name])
    return rounding(model, ACTIVATIONS[name], Matrices(checkpoint).parts, checkpoint.tensor)


def rounding(
    model: Decoder,
    inputs: Inputs | None,
    parts: Mapping[str, Part] | None = None,
    weight_of: Callable[[str], Any] | None = None,
) -> Decoder:
    """The model, whose layers round what their projections are given.

    Args:
      model: is changed.
      inputs: how; None: not at all.
      parts: of `Matrices`; None: inputs are rounded as they are.
      weight_of: name -> a weight with `number_format` and `codes`. Where its columns were scaled,
        sorted or rotated, or its input is to be shifted (experts' apart), inputs are rounded
        there. What else a format undoes is multiplied by the rounded input too.

    Raises:
      UnsupportedError: layers that run as one, whose inputs are to be rounded in spaces of other
        kinds.
    """
    spaces: dict[Path, _Space] = {}
    if inputs is not None and weight_of is not None:
        spaces = _spaces(model, parts or {}, weight_of)
    for kind, stack in enumerate(model.layers):
        for path, part in nnx.iter_modules(stack):
            if isinstance(part, Linear | Projection) and not isinstance(part, Router):
                space = spaces.get((LAYERS, kind, *path), _Space())
                part.around = None if inputs is None else Rounded(inputs, space.steps, space.arrays)
    return model


@dataclass(slots=True)
class _Space:
    """Of the layers of a stack: the steps of one, and the arrays of all."""

    steps: tuple[Step, ...] = ()
    arrays: list[np.ndarray] = field(default_factory=list)
    layers: int = 0  # that have steps


def _spaces(
    model: Decoder, parts: Mapping[str, Part], weight_of: Callable[[str], Any]
) -> dict[Path, _Space]:
    """By the path of a stack, where a weight has any."""
    found: dict[Path, _Space] = {}
    for name, part in parts.items():
        if part.tensor != name:
            continue
        weight = weight_of(name)
        steps = tuple(step for step in weight.number_format.transforms if is_of_inputs(step))
        path, index = located(model, name, part)
        if not steps or len(index) > 1:
            continue
        layers, columns = len(model.members[path[1]]), weight.shape[-1]
        space = found.setdefault(path[:-1], _Space(steps))
        if [(s.name, s.settings) for s in space.steps] != [(s.name, s.settings) for s in steps]:
            raise _mixed(name, steps)
        for i, step in enumerate(steps):
            (own,) = step.arrays
            numbers = np.asarray(own.numbers(np.asarray(weight.codes[own.name])))
            if len(space.arrays) == i:
                neutral = SPACES[step.name].neutral
                other = numbers if neutral is None else neutral(columns)
                space.arrays.append(np.stack([other.astype(numbers.dtype)] * layers))
            space.arrays[i][index] = numbers
        space.layers += 1
    for path, space in found.items():
        whole = space.layers == len(model.members[path[1]])
        if not whole and any(SPACES[step.name].neutral is None for step in space.steps):
            raise _mixed(".".join(map(str, path)), space.steps)
    return found


def _mixed(name: str, steps: tuple[Step, ...]) -> UnsupportedError:
    return UnsupportedError(
        "rounded inputs",
        tensor=name,
        expected="one kind of transform in all layers that run as one",
        found=", ".join(step.name for step in steps),
    )
