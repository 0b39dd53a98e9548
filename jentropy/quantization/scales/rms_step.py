"""One step for the tensor, in units of its root mean square, whatever its largest weight is."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt

from jentropy.errors import UnsupportedError
from jentropy.formats import Format
from jentropy.formats.encoding import bits_of
from jentropy.quantization.statistics import Statistics

from .scales import Scales


@dataclass(frozen=True, slots=True, kw_only=True)
class RmsStep(Scales):
    """A scale per tensor that is a multiple of the weights' root mean square.

    Example:
      >>> RmsStep().size
      0.5
    """

    size: float = 0.5  # about 3 bits; the factor changes it

    def fit(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        number_format: Format,
        factor: float,
    ) -> dict[str, UInt[Array, "*grid"]]:
        """See `Scales`.

        Raises:
          UnsupportedError: a format with other parameters than an FP32 scale per tensor.
        """
        (parameter,) = number_format.parameters or (None,)
        if parameter is None or parameter.element.name != "FP32" or parameter.block is not None:
            raise UnsupportedError(
                "parameters", expected="an FP32 scale per tensor", found=number_format.name
            )
        rms = jnp.sqrt(jnp.square(weight).mean())
        step = jnp.maximum(rms * jnp.float32(factor * self.size), 1e-30)
        return {parameter.name: bits_of(step).reshape(1, 1)}
