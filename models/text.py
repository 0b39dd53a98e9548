"""Prompts and continuations as text, with the checkpoint's own `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from jentropy import modes
from jentropy.checkpoints import open_checkpoint
from jentropy.checkpoints.contents import TOKENIZER
from jentropy.errors import InputError, said

from .decoder import Decoder
from .sampling import Sampling
from .session import Session


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
        raise InputError(f"{TOKENIZER}: {said(error)}", file=checkpoint.source) from error


@modes.standard
def continue_text(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    stop_tokens: Sequence[int] = (),
) -> tuple[list[int], str]:
    """Continues a prompt. To have text as it comes, see `Session`.

    Args:
      model: the model.
      tokenizer: that of its checkpoint.
      prompt: one token at least.
      max_new_tokens: tokens to add; fewer if an end token comes before.
      temperature, seed, top_k, top_p, min_p, repetition_penalty, stop_tokens: as of `generate`.
      stop: texts that end it, and are left out.

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
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    session = Session(
        model, tokenizer, sampling=sampling, seed=seed, stop=stop, stop_tokens=stop_tokens
    )
    ids = encode(tokenizer, prompt)
    new = "".join(session.stream(ids, max_new_tokens))
    return ids + session.answer.ids, tokenizer.decode(ids) + new


def encode(tokenizer: Tokenizer, prompt: str, *, special: bool = True) -> list[int]:
    """The tokens of a prompt.

    Args:
      tokenizer: that of the model.
      prompt: text.
      special: adds the tokens that the tokenizer begins a text with.

    Returns:
      Token ids.

    Raises:
      InputError: there are none.

    Example:
      >>> from jentropy import models
      >>> encode(models.load_tokenizer(models.BUNDLED), "import os")
      [607, 546]
    """
    ids = tokens_of(tokenizer, prompt, special=special)
    if not ids:
        raise InputError("prompt", expected="at least one token", found=repr(prompt))
    return ids


def tokens_of(tokenizer: Tokenizer, text: str, *, special: bool = True) -> list[int]:
    """The tokens of a text, which may be none; see `encode`."""
    try:
        return tokenizer.encode(text, add_special_tokens=special).ids
    except TypeError as error:  # surrogates: bytes of the command line that are no UTF-8
        raise InputError("prompt", expected="text", found=f"{text!r:.60}") from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library's is no Exception
        raise InputError(f"{TOKENIZER} cannot encode a text: {said(error)}") from error
