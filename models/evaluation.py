"""What a model loses: likelihood of a text, distance from another one, steadiness over batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from jentropy.checkpoints.progress import Progress

from .continuing import (
    Agreement,
    BatchSize,
    Samples,
    agreement_of,
    batch_sizes,
    continued,
    sampled,
)
from .decoder import Decoder
from .scoring import Likelihood, likelihood


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All that was asked for; see the classes of its parts."""

    likelihood: Likelihood
    agreement: Agreement | None = None
    batch_sizes: tuple[BatchSize, ...] = ()
    samples: Samples | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, without what was not asked for; an infinite error is null."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if one not in (None, ())}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if value == math.inf else value


def evaluate(
    model: Decoder,
    rows: Int[np.ndarray, "sequences time"],
    *,
    reference: Decoder | None = None,
    sizes: Sequence[int] = (),
    samples: int = 0,
    tokens: int = 64,
    prompts: int = 16,
    progress: Progress | None = None,
) -> Evaluation:
    """All figures of a model.

    Args:
      model: the model.
      rows: the text, see `likelihood`.
      reference: what it is compared with.
      sizes: batch sizes, see `batch_sizes`; none: no such figures.
      samples: of every prompt; 0: none.
      tokens: of continuations.
      prompts: first halves of as many sequences are continued, greedily and by samples.
      progress: as of `likelihood`.
    """
    starts = rows[:prompts, : max(1, rows.shape[1] // 2)]
    agreement = None
    found = likelihood(model, rows, reference, progress=progress)
    if reference is not None:
        greedy = [continued(one, starts, tokens)[0] for one in (model, reference)]
        agreement = agreement_of(*greedy)
    return Evaluation(
        likelihood=found,
        agreement=agreement,
        batch_sizes=batch_sizes(model, rows, sizes, tokens=tokens) if len(sizes) > 1 else (),
        samples=sampled(model, starts, samples, tokens=tokens, reference=reference)
        if samples
        else None,
    )
