"""Checkpoints whose matrices are quantised by a recipe: read, calibrated, written compressed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jentropy import modes
from jentropy.checkpoints import Checkpoint, exporting, open_checkpoint, save
from jentropy.checkpoints.bases import Bases
from jentropy.checkpoints.contents import CONFIG, CONFIGS
from jentropy.checkpoints.mirrors import destination
from jentropy.checkpoints.progress import Progress
from jentropy.checkpoints.shared_stages import expect_free
from jentropy.containers import compress
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import QuantizedTensor
from jentropy.quantization import Recipe, Statistics, quantize_weights, rates
from jentropy.quantization.allocations import ByRole, Equal
from jentropy.quantization.alphabets import Integer, Minifloat, OfFormat, OfTable
from jentropy.quantization.roundings import Nearest
from jentropy.quantization.scales import Rules

from .calibration import Calibration, calibrate
from .decoder import Decoder
from .loading import load
from .matrices import Matrices, Part, address, located
from .text import load_tokenizer
from .texts import CALIBRATES, LENGTH, texts_of, token_sequences

SEQUENCES = 128  # that calibrate
SCORED = 8  # sequences by which an allocation may ask for the loss
DECLARED = ("quantization_config", "compression_config", "quantization")  # of the source alone
BESIDE = (
    *CONFIGS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


class Calibrated(Mapping[str, Statistics]):
    """What quantisers ask of a calibration, by the names of matrices, as means when asked for.

    Args:
      found: a calibration.
      names: of matrices that it has.
    """

    def __init__(self, found: Calibration, names: Sequence[str]):
        self._found, self._names = found, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Statistics:
        if name not in self._names:
            raise KeyError(name)
        return Statistics(**self._found.of(address(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def with_weights(model: Decoder, parts: Mapping[str, Part], weights: Mapping[str, Any]) -> Decoder:
    """A dense model with other matrices in place of some of its own.

    Args:
      model: is not changed; in the other one the stacks that have these matrices are float32.
      parts: of `Matrices`.
      weights: float[outputs, inputs] by name.
    """
    graph, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    stacks: dict[Any, np.ndarray] = {}
    for name, weight in weights.items():
        path, index = located(model, name, parts[name])
        if path not in stacks:
            stacks[path] = np.array(flat[path].get_value(), np.float32)
        stacks[path][index] = np.asarray(weight, np.float32)
    for path, stack in stacks.items():
        flat[path] = flat[path].replace(jnp.asarray(stack))
    return nnx.merge(graph, nnx.from_flat_state(flat))


class Loss:
    """KL from a model to the same with other matrices, over some sequences.

    Args:
      model: dense.
      parts: of `Matrices`.
      rows: int[sequences, time].
    """

    def __init__(
        self, model: Decoder, parts: Mapping[str, Part], rows: Int[np.ndarray, "sequences time"]
    ):
        self._model, self._parts = model, parts
        self._rows = [jnp.asarray(row[None]) for row in rows]
        self._own = [jax.nn.log_softmax(model(row)) for row in self._rows]

    @modes.standard
    def __call__(self, weights: Mapping[str, Any]) -> float:
        """Nats a token.

        Args:
          weights: float[outputs, inputs] by name.
        """
        other = with_weights(self._model, self._parts, weights)
        pairs = zip(self._rows, self._own, strict=True)
        return float(np.mean([float(_kl(own, other(row))) for row, own in pairs]))


@jax.jit
def _kl(
    own: Float[Array, "batch time vocabulary"], logits: Float[Array, "batch time vocabulary"]
) -> Float[Array, ""]:
    return (jnp.exp(own) * (own - jax.nn.log_softmax(logits))).sum(-1).mean()


@modes.detached
def quantize_checkpoint(
    src: str | Path,
    dst: str | Path,
    recipe: Recipe,
    *,
    bits: float | None = None,
    text: str | Path | None = None,
    sequences: int = SEQUENCES,
    length: int = LENGTH,
    sums: str | Path | None = None,
    tool: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    base: Bases = None,
) -> float:
    """Quantises the projections of a model, and writes it as a compressed checkpoint.

    Embeddings, norms, routers and the output projection stay what they are. Every matrix lies under
    the name that most checkpoints have for it, experts one by one.

    Args:
      src: what `load` takes.
      dst: where the compressed checkpoint will appear, whole or not at all.
      recipe: how.
      bits: mean coded bits of a weight of the projections; None: as the recipe says.
      text: calibrates; None: every second module of Python's standard library.
      sequences, length: of the text.
      sums: where those of the calibration are saved and taken up, see `calibrate`.
      tool: writes a directory that this tool reads (`checkpoints.exporting`) and no compressed
        checkpoint.
      overwrite: whether one that is there is replaced.
      progress: called with the sequences calibrated since the last call.
      base: of a compressed checkpoint that is told by another, see `jentropy.load`.

    Returns:
      Coded bits of a weight of the projections.

    Raises:
      InputError: an architecture that is not known, or bits that the recipe cannot have.
    """
    checkpoint = open_checkpoint(src, base=base)
    matrices = Matrices(checkpoint)
    if not matrices:
        raise InputError("no matrices to quantise", file=checkpoint.source)
    # What cannot be written is said before the work.
    if tool is None:
        expect_free(destination(dst), overwrite=overwrite)
    else:
        exporting.expect_place(dst, tool, overwrite=overwrite)
        apart = [name for name, part in matrices.parts.items() if part.tensor != name]
        if apart:
            raise UnsupportedError(
                f"weights of {tool}",
                tensor=matrices.parts[apart[0]].tensor,
                expected="each projection a tensor of its own",
                found="one of several",
            )
    statistics: Mapping[str, Statistics] = {}
    loss = None
    if asks_for_statistics(recipe):
        texts, tokenizer = texts_of(text, CALIBRATES), load_tokenizer(src)
        model = load(src, compute_dtype=jnp.float32, dense=True, base=base)
        rows = token_sequences(
            texts,
            tokenizer,
            model.config,
            sequences=sequences,
            length=length,
        )
        found = calibrate(model, rows, path=sums, progress=progress)
        statistics = Calibrated(found, list(matrices))
        loss = Loss(model, matrices.parts, rows[:SCORED])
    made = quantize_weights(
        matrices,
        recipe,
        statistics,
        bits=bits,
        loss=loss,
        keep=_archived if tool is None else _on_host,
    )
    tensors, told = {**dict(matrices.others()), **made}, beside(checkpoint)
    if tool is None:
        save(dst, tensors, overwrite=overwrite, beside=told)
    else:
        exporting.export(dst, tensors, tool, beside=told, overwrite=overwrite)
    return rates.coded(made)


def _on_host(tensor: QuantizedTensor) -> QuantizedTensor:
    return jax.tree.map(np.asarray, tensor)


def _archived(tensor: QuantizedTensor) -> QuantizedTensor:
    """With codes as they will be in the checkpoint: what is held meanwhile are coded bits."""
    return compress(_on_host(tensor))


def asks_for_statistics(recipe: Recipe) -> bool:
    """Whether what a recipe makes depends on the inputs of layers."""
    blind = (OfFormat | OfTable | Integer | Minifloat, Rules, Nearest, Equal | ByRole | None)
    parts = (recipe.alphabet, recipe.scales, recipe.rounding, recipe.allocation)
    is_blind = all(isinstance(one, kind) for one, kind in zip(parts, blind, strict=True))
    return not is_blind or bool(recipe.transforms) or recipe.pruning is not None


def beside(checkpoint: Checkpoint) -> dict[str, str]:
    """The texts beside a checkpoint's weights; its config without what it says of quantisation."""
    found = {name: checkpoint.read_text(name) for name in BESIDE}
    texts = {name: text for name, text in found.items() if text is not None}
    config = json.loads(texts[CONFIG])
    texts[CONFIG] = json.dumps({k: v for k, v in config.items() if k not in DECLARED}, indent=2)
    return texts


def decoded(tensors: Mapping[str, QuantizedTensor]) -> dict[str, np.ndarray]:
    """Numbers of quantised matrices."""
    return {name: np.asarray(one.dequantize(np.float32)) for name, one in tensors.items()}
