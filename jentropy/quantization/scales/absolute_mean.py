"""The mean magnitude of a block's weights, zeros left out: BitNet's scale."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt

from jentropy.formats import Format, codes_of
from jentropy.formats.fitting import reduced
from jentropy.quantization.statistics import Statistics

from .scales import Scales


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsoluteMean(Scales):
    """Scales of signs and of ternary numbers.

    H. Wang et al., BitNet: scaling 1-bit transformers for large language models, 2023; S. Ma et
    al., The era of 1-bit LLMs, 2024.
    """

    def fit(
        self,
        weight: Float32[Array, "rows columns"],
        statistics: Statistics,
        number_format: Format,
        factor: float,
    ) -> dict[str, UInt[Array, "*grid"]]:
        """See `Scales`; of a format with one scale, of a float's element."""
        (parameter,) = number_format.parameters
        blocks = parameter.blocks(2)
        total = reduced(jnp.abs(weight), blocks, jnp.sum)
        count = reduced((weight != 0).astype(jnp.float32), blocks, jnp.sum)
        mean = factor * total / jnp.maximum(count, 1)
        return {parameter.name: codes_of(mean.astype(parameter.element.dtype))}
