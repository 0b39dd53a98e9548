"""Text out of tokens as they come: whole characters, up to a stop string and no further."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

CONTEXT = 8  # tokens before, on which the first one's text may depend: a space that it has or not
PENDING = 8  # tokens of one character at the most; what takes more is none
INCOMPLETE = "\ufffd"  # what a decoder makes of bytes that are no UTF-8, or not yet


class Pieces:
    """The text of a sequence of tokens, piece by piece.

    Args:
      tokenizer: of the tokens.
      before: tokens that come before, whose text is known.
      stops: texts that end it, and are no part of it.

    Attributes:
      text: all of it so far.
      ended: whether a stop string came.

    Example:
      >>> from jentropy import models
      >>> tokenizer = models.load_tokenizer(models.BUNDLED)
      >>> pieces = Pieces(tokenizer, stops=["(x"])
      >>> [pieces.add([token]) for token in tokenizer.encode("né = f(x)").ids]
      ['n', '', 'é', ' =', ' f', '', '', '']
      >>> pieces.text, pieces.ended
      ('né = f', True)
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stops: Sequence[str] = ()):
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.ids = list(before)[-CONTEXT:]
        self.known, self.told = 0, len(self.ids)  # tokens: the text of the former is left out
        self.text, self.waiting, self.ended = "", "", False

    def add(self, ids: Sequence[int]) -> str:
        """What can be told with these tokens, which is all of the text but what may change."""
        self.ids += ids
        return self._tell(self._decoded(final=False), final=False)

    def flush(self) -> str:
        """What is left when no more tokens come."""
        return self._tell(self._decoded(final=True), final=True)

    def _decoded(self, *, final: bool) -> str:
        before, now = (
            self.tokenizer.decode(self.ids[self.known : end]) for end in (self.told, len(self.ids))
        )
        broken = now.endswith(INCOMPLETE) and len(self.ids) - self.told <= PENDING
        if len(now) <= len(before) or (broken and not final):
            return ""
        self.known, self.told = self.told, len(self.ids)
        return now[len(before) :]

    def _tell(self, more: str, *, final: bool) -> str:
        if self.ended:
            return ""
        found = self.waiting + more
        ends = [found.index(stop) for stop in self.stops if stop in found]
        if ends:
            self.ended, self.waiting, found = True, "", found[: min(ends)]
        else:
            held = 0 if final else max((_overlap(found, stop) for stop in self.stops), default=0)
            self.waiting, found = found[len(found) - held :], found[: len(found) - held]
        self.text += found
        return found


def _overlap(text: str, stop: str) -> int:
    """The most characters that end a text and begin a stop string."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0
    )
