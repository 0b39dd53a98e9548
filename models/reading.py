"""What of a model's weights one token reads: what a device's memory must give for it."""

from __future__ import annotations

import jax
from flax import nnx

from .decoder import Decoder
from .experts import ExpertMLPs


def bytes_per_token(model: Decoder) -> int:
    """Bytes of weights that a decoding step of one sequence reads, as they lie on the device.

    All of them but the experts that are not chosen, and but the embeddings of other tokens, where
    these are no output projection too.

    Args:
      model: a model with weights, or without data.

    Returns:
      Bytes.

    Example:
      >>> from jentropy import models
      >>> model = models.load(models.BUNDLED)
      >>> bytes_per_token(model) == sum(w.nbytes for w in jax.tree.leaves(nnx.state(model)))
      True
    """

    def size(part: object) -> float:
        leaves = jax.tree.leaves(nnx.state(part))
        return float(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))

    total = size(model)
    if model.lm_head is not None:
        total -= size(model.embed_tokens) * (1 - 1 / model.config.vocab_size)
    for _, part in nnx.iter_modules(model):
        if isinstance(part, ExpertMLPs) and (experts := model.config.experts):
            total -= size(part) * (1 - experts.per_token / experts.count)
    return round(total)
