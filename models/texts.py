"""Text that models are calibrated on and scored by, cut into sequences of tokens.

Without another text it is the standard library of the running Python: its modules in the order of
their paths, of which every second one calibrates and the others score.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from jentropy.checkpoints.contents import decode_text
from jentropy.checkpoints.faults import read_file
from jentropy.errors import InputError

from .config import DecoderConfig
from .text import tokens_of

LENGTH = 256  # tokens of a sequence
CALIBRATES, SCORES = 0, 1  # which of two modules


def standard_library(part: int) -> Iterator[str]:
    """Every second module of Python's standard library.

    Args:
      part: CALIBRATES, or SCORES.

    Yields:
      Their texts, in the order of their paths; those that are not UTF-8 are left out.

    Example:
      >>> next(standard_library(CALIBRATES)) == next(standard_library(SCORES))
      False
    """
    root = Path(sysconfig.get_path("stdlib"))
    inside = (path.relative_to(root) for path in root.rglob("*.py"))
    paths = sorted(path.as_posix() for path in inside if "site-packages" not in path.parts)
    for path in paths[part::2]:
        try:
            yield (root / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def texts_of(file: str | Path | None, part: int) -> Iterable[str]:
    """The texts of a file, or of the standard library.

    Args:
      file: a text of UTF-8, or None.
      part: of the standard library, see there.

    Raises:
      InputError: the file cannot be read.
    """
    if file is None:
        return standard_library(part)
    return [decode_text(Path(file), read_file(Path(file)))]


def token_sequences(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    config: DecoderConfig,
    *,
    sequences: int,
    length: int = LENGTH,
) -> Int[np.ndarray, "sequences length"]:
    """Sequences of one length, cut out of texts that stand one behind the other.

    Args:
      texts: each ends with the first of the config's end tokens, if it has one.
      tokenizer: of the model.
      config: of the model; sequences are no longer than it has positions.
      sequences: at the most.
      length: tokens of each.

    Returns:
      int32[sequences, length].

    Raises:
      InputError: texts of fewer tokens than one sequence has.

    Example:
      >>> from jentropy import models
      >>> config = models.load(models.BUNDLED).config
      >>> tokenizer = models.load_tokenizer(models.BUNDLED)
      >>> token_sequences(["import os"] * 4, tokenizer, config, sequences=2, length=4).tolist()
      [[607, 546, 0, 607], [546, 0, 607, 546]]
    """
    length, ids = min(length, config.max_position_embeddings), list[int]()
    end = list(config.eos_token_ids[:1])
    for text in texts:
        ids += [*tokens_of(tokenizer, text), *end]
        if len(ids) >= sequences * length:
            break
    count = min(sequences, len(ids) // length)
    if not count:
        raise InputError("text", expected=f"at least {length} tokens", found=len(ids))
    return np.array(ids[: count * length], np.int32).reshape(count, length)
