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
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jentropy import formats
from jentropy.errors import UnsupportedError
from jentropy.formats import FP32, Format, dequantize, quantize

from .decoder import Decoder
from .experts import Projection, Router
from .layers import Linear

NONE = "none"
# Formats of a matrix whose rows are tokens; one scale is of each row, or of blocks of channels.
ACTIVATIONS: dict[str, Format | None] = {
    NONE: None,
    "int8": formats.INT8_ROW.with_parameter("scale", element=FP32),
    "fp8": formats.FP8_ROW,
    "nvfp4": formats.NVFP4,
    "mxfp4": formats.MXFP4,
}


@dataclass(frozen=True, slots=True)
class Rounded:
    """What stands around a product whose input is rounded.

    Attributes:
      number_format: of the input.
    """

    number_format: Format

    def __call__(
        self, product: Callable[[Array], Array], x: Float[Array, "*batch K"], sizes: Any = None
    ) -> Array:
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        rounded = dequantize(self.number_format, quantize(rows, self.number_format))
        return product(rounded.astype(x.dtype).reshape(x.shape))


def simulated(model: Decoder, name: str) -> Decoder:
    """The model, whose layers round what their projections are given.

    Routers and the output projection are left as they are.

    Args:
      model: is changed.
      name: a key of `ACTIVATIONS`.

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
    for stack in model.layers:
        for _, part in nnx.iter_modules(stack):
            if isinstance(part, Linear | Projection) and not isinstance(part, Router):
                part.around = None if number_format is None else Rounded(number_format)
    return model
