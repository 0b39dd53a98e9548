"""Flax models that run from compressed weights, imported as `jentropy.models`.

To add an architecture of the Llama family: a file whose `config` reads its `config.json` into a
`DecoderConfig`, a line in `ARCHITECTURES` and one for each of its names in `OTHER_NAMES`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jentropy.checkpoints.progress import Progress

from . import llama, qwen3
from .config import DecoderConfig, RopeConfig
from .decoder import Decoder
from .generation import generate
from .loading import load_model
from .text import continue_text, load_tokenizer

ARCHITECTURES: dict[str, Callable[..., DecoderConfig]] = {
    "LlamaForCausalLM": llama.config,
    "Qwen3ForCausalLM": qwen3.config,
}
# `model_type`, and the class that is saved without an output projection.
OTHER_NAMES = {
    "llama": "LlamaForCausalLM",
    "LlamaModel": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}
BUNDLED = Path(__file__).parent / "bundled" / "pystdlib"  # the demo's model


def load(
    path: str | Path,
    mesh: jax.sharding.Mesh | None = None,
    compute_dtype: Any = None,
    *,
    progress: Progress | None = None,
) -> Decoder:
    """Loads a model.

    From a compressed checkpoint, matrices stay compressed on the device and every layer multiplies
    from the compressed bytes; from a Hugging Face directory they are dense. The logits of the two
    are the same bits, but for quantised matrices, which stay so if they are compressed and are
    rounded to `compute_dtype` if dense. Where the device has no kernel for a format, its matrices
    are decoded for every product, which takes less memory and more time than dense ones.

    Weights are all that is read as quantised: activations and the cache are not, whatever the
    config declares of them. A key of the config that is neither read nor known to change nothing
    (`models/harmless.py`) is refused, and so are rotations, transforms and adapters.

    Args:
      path: a directory in Hugging Face form, its safetensors file, a compressed checkpoint made of
        one, or `hf://owner/name`.
      mesh: spreads the weights over its devices, split by rows where that divides them; compressed
        ones are multiplied by the reference backend, which XLA can split.
      compute_dtype: of activations, bfloat16 or float32; None takes bfloat16 for BF16 weights and
        float32 for any other. Accumulation is float32.
      progress: called with the weights read since the last call; see `checkpoints.progress`.

    Returns:
      An `nnx.Module`: `model(input_ids)` maps int32[batch, time] to float32[batch, time,
      vocabulary].

    Raises:
      InputError: an unknown architecture, a config that says what it does not know, or weights
        that do not fit it, all of them named.
    """
    return load_model(
        path,
        ARCHITECTURES,
        OTHER_NAMES,
        mesh=mesh,
        compute_dtype=compute_dtype,
        progress=progress,
    )


__all__ = [
    "ARCHITECTURES",
    "BUNDLED",
    "Decoder",
    "DecoderConfig",
    "OTHER_NAMES",
    "RopeConfig",
    "continue_text",
    "generate",
    "load",
    "load_tokenizer",
]
