"""Prompts and continuations as text, with the checkpoint's own `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jentropy import modes
from jentropy.checkpoints import open_checkpoint
from jentropy.checkpoints.contents import TOKENIZER
from jentropy.errors import InputError

from .decoder import Decoder
from .generation import generate


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint: its `tokenizer.json`, or that beside a single file.

    Args:
      path: whatever `load` takes.

    Returns:
      A `tokenizers.Tokenizer`.

    Raises:
      InputError: the checkpoint has none, or one that cannot be read.

    Example:
      >>> from jentropy import models
      >>> models.load_tokenizer(models.BUNDLED).encode("import os").ids
      [607, 546]
    """
    checkpoint = open_checkpoint(path)
    text = checkpoint.read_text(TOKENIZER)
    if text is None:
        raise InputError(f"no {TOKENIZER}", file=checkpoint.source, hint="text needs one")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{TOKENIZER}: {error}", file=checkpoint.source) from error


@modes.standard
def continue_text(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> tuple[list[int], str]:
    """Continues a prompt.

    Args:
      model: the model.
      tokenizer: that of its checkpoint.
      prompt: one token at least.
      max_new_tokens: tokens to add; fewer if an end token comes before.
      temperature, seed: as of `generate`.

    Returns:
      Token ids, the prompt's included and what follows an end token left out, and their text.

    Raises:
      InputError: no text, or one that the model has no room to continue.

    Example:
      >>> from jentropy import models
      >>> model, tokenizer = models.load(models.BUNDLED), models.load_tokenizer(models.BUNDLED)
      >>> ids, text = continue_text(model, tokenizer, "import os", max_new_tokens=0)
      >>> len(ids), text
      (2, 'import os')
    """
    try:
        ids = tokenizer.encode(prompt).ids
    except TypeError as error:  # surrogates: bytes of the command line that are no UTF-8
        raise InputError("prompt", expected="text", found=f"{prompt!r:.60}") from error
    if not ids:
        raise InputError("prompt", expected="at least one token", found=repr(prompt))
    out = np.asarray(
        generate(
            model,
            jnp.asarray([ids]),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
    )[0]
    ends = np.flatnonzero(np.isin(out[len(ids) :], model.config.eos_token_ids))
    kept = out[: len(ids) + int(ends[0])] if ends.size else out
    return kept.tolist(), tokenizer.decode(kept.tolist())
