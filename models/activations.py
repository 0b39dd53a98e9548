"""Inputs of layers as a low precision would have them, for what a model loses by it.

Every input of a projection within the layers is rounded to a format, a scale to each token or to
each block of its channels, and multiplied by the weights as ever: what kernels that multiply codes
compute, but for the order of their sums. Where a weight's columns were scaled before it was
quantised, the input is rounded in that space: it is multiplied by the scales, rounded, and divided.

References:
  SmoothQuant, arXiv 2211.10438; ARCQuant, arXiv 2601.07475.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jentropy import formats
from jentropy.checkpoints import Checkpoint
from jentropy.errors import UnsupportedError
from jentropy.formats import FP32, Format, dequantize, quantize

from .decoder import Decoder
from .experts import Projection, Router
from .layers import Linear
from .matrices import Matrices, located
from .names import LAYERS, Path

NONE = "none"
ROLES = {"columns": "scale", "shift": "shift"}  # of transforms, in the space of inputs
NEUTRAL = {"columns": 1.0, "shift": 0.0}
# Formats of a matrix whose rows are tokens; one scale is of each row, or of blocks of channels.
ACTIVATIONS: dict[str, Format | None] = {
    NONE: None,
    "int8": formats.INT8_ROW.with_parameter("scale", element=FP32),
    "fp8": formats.FP8_ROW,
    "nvfp4": formats.NVFP4,
    "mxfp4": formats.MXFP4,
}


class Rounded(nnx.Module):
    """What stands around a product whose input is rounded.

    Args:
      number_format: of the input.
      scale: float32[..., K] that the input is multiplied by before, and divided by after.
      shift: float32[..., K] that is subtracted before that, and added after.
    """

    def __init__(self, number_format: Format, scale: Any = None, shift: Any = None):
        self.number_format = number_format
        self.scale = None if scale is None else nnx.Param(jnp.asarray(scale))
        self.shift = None if shift is None else nnx.Param(jnp.asarray(shift))

    def __call__(
        self, product: Callable[[Array], Array], x: Float[Array, "*batch K"], sizes: Any = None
    ) -> Array:
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        scale, shift = _row(self.scale, 1.0), _row(self.shift, 0.0)
        codes = quantize((rows - shift) * scale, self.number_format)
        rounded = dequantize(self.number_format, codes) / scale + shift
        return product(rounded.astype(x.dtype).reshape(x.shape))


def _row(channels: nnx.Param | None, neutral: float) -> Float[Array, "1 K"]:
    """Numbers of channels, or one that changes nothing."""
    return jnp.full((1, 1), neutral) if channels is None else channels.get_value()[None, :]


def simulated(model: Decoder, name: str, checkpoint: Checkpoint | None = None) -> Decoder:
    """The model, whose layers round what their projections are given.

    Routers and the output projection are left as they are.

    Args:
      model: is changed.
      name: a key of `ACTIVATIONS`.
      checkpoint: that it was loaded from: where weights had their columns scaled, or inputs are to
        be shifted (`columns` and `shift` of their formats, experts' apart), inputs are rounded
        there. What else a format undoes is multiplied by the rounded input too.

    Returns:
      The same model.

    Raises:
      UnsupportedError: another name.

    Example:
      >>> from jentropy import models
      >>> model = simulated(models.load(models.BUNDLED), "int8")
      >>> model.layers[0].mlp.up_proj.around.number_format.name
      'INT8'
    """
    if name not in ACTIVATIONS:
        raise UnsupportedError("activations", expected=" or ".join(ACTIVATIONS), found=name)
    number_format = ACTIVATIONS[name]
    spaces = {} if checkpoint is None or number_format is None else _spaces(model, checkpoint)
    for kind, stack in enumerate(model.layers):
        for path, part in nnx.iter_modules(stack):
            if isinstance(part, Linear | Projection) and not isinstance(part, Router):
                space = spaces.get((LAYERS, kind, *path), {})
                part.around = None if number_format is None else Rounded(number_format, **space)
    return model


def _spaces(model: Decoder, checkpoint: Checkpoint) -> dict[Path, dict[str, np.ndarray]]:
    """Scales and shifts of inputs by the path of their stack, where a weight has any."""
    found: dict[Path, dict[str, np.ndarray]] = {}
    for name, part in Matrices(checkpoint).parts.items():
        steps = checkpoint.tensor(part.tensor).number_format.transforms
        steps = tuple(step for step in steps if step.name in NEUTRAL)
        path, index = located(model, name, part)
        if not steps or len(index) > 1 or part.tensor != name:
            continue
        codes = checkpoint.tensor(name).codes
        layers = len(model.members[path[1]])
        stacks = found.setdefault(path[:-1], {})
        for step in steps:
            (own,) = step.arrays
            numbers = np.asarray(own.numbers(codes[own.name]), np.float32)
            role = ROLES[step.name]
            blank = np.full((layers, numbers.size), NEUTRAL[step.name], np.float32)
            stacks.setdefault(role, blank)[index] = numbers
    return found
