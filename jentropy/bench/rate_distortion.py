"""Suite `rate-distortion`: every recipe by the bits that it is coded in, against what it loses.

Of a million independent numbers, Gaussian and Laplacian, the relative squared error and how many
bits above the least that any code could have; of a model's projections the NLL and the KL on text
that did not calibrate it. A recipe is tried as it stands, and one that is made for a code, whose
steps are no blocks' own, at `BITS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jentropy
from jentropy import models
from jentropy.errors import InputError, UnsupportedError
from jentropy.models import activations, quantizing, scoring, texts
from jentropy.models.calibration import calibrate
from jentropy.models.matrices import Matrices
from jentropy.quantization import RECIPES, Recipe, distortions, quantize_weights, rates
from jentropy.quantization.alphabets import Elementwise
from jentropy.quantization.scales import RmsStep

from .measure import Result

BITS = (2.0, 3.0, 4.0)
SIZE = 1024  # rows and columns of independent numbers
CALIBRATED, SCORED = 128, 64  # sequences
# Squared error that no code of R bits falls below, over 4^-R: of the Gaussian its D(R), of the
# Laplacian Shannon's lower bound, which is as good as that from a bit on.
LEAST = {"gaussian": 1.0, "laplace": math.e / math.pi}


def run(
    source: str | Path,
    recipes: Sequence[str] = (),
    bits: Sequence[float] = BITS,
    *,
    sequences: int = SCORED,
    sums: str | Path | None = None,
) -> Iterator[Result]:
    """Rates and distortions of recipes.

    Args:
      source: a model, what `jentropy.models.load` takes.
      recipes: names in `RECIPES`; none: all.
      bits: that are asked for, beside what each recipe has by itself.
      sequences: that score the model.
      sums: where those of the calibration are kept, see `calibrate`.

    Yields:
      A row for each recipe and number of bits.
    """
    sources, model = _synthetic(), Model(source, sequences, sums)
    for name in recipes or RECIPES:
        for asked in (None, *(bits if is_coded(RECIPES[name]) else ())):
            figures: dict[str, float] = {}
            with suppress(InputError, UnsupportedError):  # such bits it cannot have
                for kind, weight in sources.items():
                    figures |= _of_numbers(kind, weight, RECIPES[name], asked)
                figures |= model.figures(RECIPES[name], asked)
            if not figures:
                continue
            title = name if asked is None else f"{name} at {asked:g} bits"
            yield Result(name=title, figures=figures)


def is_coded(recipe: Recipe) -> bool:
    """Whether a recipe is made for a code: its numbers are as coarse as the bits ask for."""
    return isinstance(recipe.scales, RmsStep) or not isinstance(recipe.alphabet, Elementwise)


def _synthetic() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "gaussian": draw.normal(size=(SIZE, SIZE)).astype(np.float32),
        "laplace": draw.laplace(scale=0.5**0.5, size=(SIZE, SIZE)).astype(np.float32),
    }


def _of_numbers(
    kind: str, weight: np.ndarray, recipe: Recipe, bits: float | None
) -> dict[str, float]:
    made = quantize_weights({"w": weight}, recipe, bits=bits)
    coded = rates.coded(jax.tree.map(np.asarray, made))
    error = float(distortions.relative(jnp.asarray(weight), made["w"].dequantize(jnp.float32)))
    figures = {f"{kind}_bits": coded, f"{kind}_relmse": error}
    if error:
        figures[f"{kind}_gap_bits"] = coded - 0.5 * math.log2(LEAST[kind] / error)
    return figures


@dataclass(frozen=True)
class Model:
    """A model that is calibrated and scored once.

    Attributes:
      source: what `models.load` takes.
      sequences: that score it.
      sums: where those of the calibration are kept.
    """

    source: str | Path
    sequences: int = SCORED
    sums: str | Path | None = None

    @cached_property
    def dense(self) -> models.Decoder:
        """With float32 activations."""
        return models.load(self.source, compute_dtype=jnp.float32, dense=True)

    @cached_property
    def matrices(self) -> Matrices:
        """Its projections."""
        return Matrices(jentropy.open_checkpoint(self.source))

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Their numbers."""
        return dict(self.matrices)

    def _rows(self, part: int, sequences: int) -> np.ndarray:
        return texts.token_sequences(
            texts.standard_library(part),
            models.load_tokenizer(self.source),
            self.dense.config,
            sequences=sequences,
        )

    @cached_property
    def statistics(self) -> quantizing.Calibrated:
        """Of every second module of Python's standard library."""
        found = calibrate(self.dense, self._rows(texts.CALIBRATES, CALIBRATED), path=self.sums)
        return quantizing.Calibrated(found, list(self.weights))

    @cached_property
    def scored(self) -> np.ndarray:
        """Tokens of the other modules."""
        return self._rows(texts.SCORES, self.sequences)

    @cached_property
    def loss(self) -> quantizing.Loss:
        """For allocations: over calibrating text."""
        rows = self._rows(texts.CALIBRATES, quantizing.SCORED)
        return quantizing.Loss(self.dense, self.matrices.parts, rows)

    def figures(self, recipe: Recipe, bits: float | None) -> dict[str, float]:
        """Bits of a projection's weight, and what the model loses.

        Where the recipe is made for rounded inputs, what is lost with those stands beside it.

        Args:
          recipe: by which it is quantised.
          bits: that are asked for.
        """
        asks = quantizing.asks_for_statistics(recipe)
        statistics, loss = (self.statistics, self.loss) if asks else (None, None)
        made = quantize_weights(self.weights, recipe, statistics, bits=bits, loss=loss)
        other = quantizing.with_weights(self.dense, self.matrices.parts, quantizing.decoded(made))
        figures = {
            "model_bits": rates.coded(jax.tree.map(np.asarray, made)),
            "stored_bits": rates.stored(made),
            **self._lost(other),
        }
        if recipe.activations is not None:
            inputs = activations.ACTIVATIONS[recipe.activations]
            activations.rounding(other, inputs, self.matrices.parts, made.__getitem__)
            figures |= {f"inputs_{name}": value for name, value in self._lost(other).items()}
        return figures

    def _lost(self, other: models.Decoder) -> dict[str, float]:
        found = scoring.likelihood(other, self.scored, self.dense)
        assert found.difference is not None
        assert found.kl is not None
        assert found.flips is not None
        return {
            "kl": found.kl.value,
            "kl_error": found.kl.error,
            "nll_added": found.difference.value,
            "nll_added_error": found.difference.error,
            "flips": found.flips.value,
        }
