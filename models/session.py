"""A text that a model goes on with: prompt, continuation, prompt, from one cache."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jentropy import modes

from .decoder import Decoder
from .decoding import Pieces
from .generation import GREEDY, stream
from .sampling import Sampling
from .state import State, prefill, refuse_more


@dataclass(slots=True, kw_only=True)
class Answer:
    """What was made of a prompt.

    Attributes:
      prompt_ids: its tokens.
      ids: new tokens, without one that ends the text.
      logprobs: of them, as `State` has them.
      text: of the new tokens, up to a stop string.
      ended: whether a stop token or string ended it.
      first_seconds: until the prompt was read and the first new token was there.
      seconds: from then on until the last.

    Example:
      >>> Answer(prompt_ids=[607, 546], text=".path").ended
      False
    """

    prompt_ids: list[int] = field(repr=False)
    ids: list[int] = field(default_factory=list, repr=False)
    logprobs: list[float] = field(default_factory=list, repr=False)
    text: str = ""
    ended: bool = False
    first_seconds: float = 0.0
    seconds: float = 0.0


class Session:
    """Continues texts; what the next one has in common with the last is not read again.

    Args:
      model: the model.
      tokenizer: that of its checkpoint.
      sampling: how tokens are chosen.
      seed: of the random numbers.
      stop: texts that end a continuation.
      stop_tokens: tokens that do, beside the config's end tokens.

    Attributes:
      answer: the last one.

    Example:
      >>> from jentropy import models
      >>> model, tokenizer = models.load(models.BUNDLED), models.load_tokenizer(models.BUNDLED)
      >>> session = models.Session(model, tokenizer, stop=["("])
      >>> "".join(session.stream(tokenizer.encode("import os").ids, 4))
      '.support.'
      >>> session.answer.ended, len(session.answer.ids)
      (False, 4)
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        stop: Sequence[str] = (),
        stop_tokens: Sequence[int] = (),
    ):
        self.model, self.tokenizer = model, tokenizer
        self.sampling, self.seed = sampling, seed
        self.stop, self.stop_tokens = stop, tuple(stop_tokens)
        self.state: State | None = None
        self.answer = Answer(prompt_ids=[])

    @modes.standard
    def stream(self, prompt: Sequence[int], max_new_tokens: int) -> Generator[str, None, None]:
        """Continues a prompt.

        Args:
          prompt: its tokens, those included that earlier prompts and answers had: one at least.
          max_new_tokens: tokens to add at the most.

        Yields:
          Text, as it comes: whole characters, and no stop string.

        Raises:
          InputError: as of `prefill`, and more positions than the model has.
        """
        began = time.perf_counter()
        refuse_more(self.model, len(prompt) + max_new_tokens, "prompt and new tokens")
        answer = self.answer = Answer(prompt_ids=list(prompt))
        self.state = self._read(answer.prompt_ids, max_new_tokens)
        pieces = Pieces(self.tokenizer, answer.prompt_ids, self.stop)
        ends = {*self.model.config.eos_token_ids, *self.stop_tokens}
        start = len(answer.prompt_ids)
        bursts = stream(
            self.model, self.state, max_new_tokens, self.sampling, stop_tokens=self.stop_tokens
        )
        for self.state in bursts:
            now = time.perf_counter() - began
            answer.first_seconds = answer.first_seconds or now
            answer.seconds = now - answer.first_seconds
            known, end = start + len(answer.ids), int(self.state.lengths[0])
            new = np.asarray(self.state.tokens)[0, known:end].tolist()
            answer.ended = new[-1] in ends
            logprobs = np.asarray(self.state.logprobs)[0, known:end].tolist()
            piece = ""
            for token, logprob in zip(new[: len(new) - answer.ended], logprobs, strict=False):
                answer.ids.append(token)
                answer.logprobs.append(logprob)
                piece += pieces.add([token])
                if pieces.ended:
                    break
            answer.text = pieces.text
            if piece:
                yield piece
            if pieces.ended:
                break
        piece = pieces.flush()
        answer.text, answer.ended = pieces.text, answer.ended or pieces.ended
        if piece:
            yield piece

    def _read(self, prompt: list[int], more: int) -> State:
        """The state behind a prompt, of whose tokens those that the last one has are not read."""
        state, needed = self.state, len(prompt) + more
        same = 0
        if state is not None and not state.lengths.is_deleted():
            length = int(state.lengths[0])
            tokens = np.asarray(state.tokens)[0, :length]
            differs = np.flatnonzero(tokens[: len(prompt)] != np.array(prompt[:length]))
            same = min(int(differs[0]) if differs.size else length, len(prompt) - 1)
            limit = self.model.config.outgrown
            is_outgrown = limit is not None and same <= limit < length
            same = same if same == length or (state.keeps_all() and not is_outgrown) else 0
        if state is None or not same:
            return prefill(self.model, [prompt], capacity=needed, seed=self.seed)
        state = replace(state, lengths=jnp.full_like(state.lengths, same))
        return prefill(self.model, [prompt[same:]], capacity=needed, state=state)
