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

    Raises:
      InputError: the checkpoint has none, or one that cannot be read.
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

    Returns:
      Token ids, the prompt's included and what follows an end token left out, and their text.
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
