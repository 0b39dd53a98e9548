"""Counts and contexts of one weight after another.

Large weights are measured in threads. Small ones are not: what Python has to do for each would keep
the other threads waiting. XLA counts their codes in a thread of its own, while Python goes on with
those before.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from jentropy import modes
from jentropy.formats import Format

from . import contexts
from .contexts import Gain, Sampler, Symbols
from .roles import OTHER, Role, role_of
from .weights import WeightCounts, begin_weight, measure_weight

SIBLINGS = 64 << 20  # bytes of symbols that are kept for weights to come
SMALL = 1 << 22  # numbers of a weight that is measured in threads
AHEAD = 2  # weights that XLA counts while Python goes on with those before

Contexts = Mapping[str, Gain]
Runs = Iterator[Mapping[str, Any]]
Steps: TypeAlias = Generator[None, None, tuple[WeightCounts, Contexts]]


@runtime_checkable
class Described(Protocol):
    """What is known of a weight before its codes are read."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def number_format(self) -> Format: ...


Weight = TypeVar("Weight", bound=Described)


def measure_all(
    weights: Iterable[tuple[Weight, Runs]], workers: int, *, with_contexts: bool
) -> Iterator[tuple[Weight, WeightCounts, Contexts]]:
    """Measures weights, reading ahead of what is done by as many as there are workers.

    To be gone through in `modes.detached_modes`.

    Args:
      weights: each with its codes, in runs that `measure_weight` takes. Runs are used up before the
        next weight is asked for.
      workers: threads.
      with_contexts: whether to measure what contexts save.

    Yields:
      The weight, its counts, and what every context saves: nothing of a weight that is too small or
      has neither exponents nor codes of four bits.

    Example:
      >>> import numpy as np
      >>> from types import SimpleNamespace
      >>> from jentropy.formats import FORMATS
      >>> w = SimpleNamespace(name="w", shape=(64, 128), number_format=FORMATS["FP8_E4M3"])
      >>> codes = {"code": np.tile(np.arange(0, 128, 8, dtype=np.uint8), (64, 8))}
      >>> ((_, counts, gains),) = measure_all([(w, iter([codes]))], 2, with_contexts=True)
      >>> counts.weights, round(gains["left"].bits, 1), round(gains["row"].bits, 1)
      (8192, 4.0, 0.0)
    """
    siblings = _Siblings()
    with ThreadPoolExecutor(workers) as pool:
        # A job waits for none but those that were submitted before it.
        waiting: deque[tuple[Weight, _Here | _There]] = deque()
        for weight, runs in weights:
            shape = weight.number_format.code_shape(weight.shape) if with_contexts else ()
            total, sampler, last = _Sum(), Sampler(shape), None
            for codes in runs:
                if last is not None:
                    total.add(pool.submit(measure_weight, last, weight.number_format), workers)
                sampler.add(codes["code"])
                last = codes
            symbols: Future[Symbols | None] = Future()
            sibling = siblings.exchange(weight, symbols, sampler.size)
            begin = partial(begin_weight, last, weight.number_format)
            steps = _steps(total, begin, sampler, symbols, sibling)
            for _, before in waiting:
                before.step()
            if weight.number_format.is_plain and math.prod(weight.shape) < SMALL:
                waiting.append((weight, _Here(steps)))
            else:
                waiting.append((weight, _There(pool, steps)))
            if len(waiting) > max(workers, AHEAD):
                weight, measured = waiting.popleft()
                yield weight, *measured.result()
        for weight, measured in waiting:
            yield weight, *measured.result()


class _Here:
    """Steps that this thread takes, the first of them at once."""

    def __init__(self, steps: Steps):
        self._steps, self._result = steps, None
        self.step()

    def step(self) -> None:
        """Takes the next, if there is one."""
        if self._result is None:
            try:
                next(self._steps)
            except StopIteration as end:
                self._result = end.value

    def result(self) -> tuple[WeightCounts, Contexts]:
        """What they come to."""
        while self._result is None:
            self.step()
        return self._result


class _There:
    """Steps that a thread of a pool takes."""

    def __init__(self, pool: ThreadPoolExecutor, steps: Steps):
        self.result = pool.submit(modes.detached(lambda: _Here(steps).result())).result

    def step(self) -> None:
        """Nothing."""


class _Sum:
    """The sum of counts that are still being made."""

    def __init__(self) -> None:
        self._pending: deque[Future[WeightCounts]] = deque()
        self._total: WeightCounts | None = None

    def add(self, counts: Future[WeightCounts], most: int) -> None:
        """Adds what will be there, and waits until no more than so many are pending."""
        self._pending.append(counts)
        self._settle(most)

    def _settle(self, most: int) -> None:
        while len(self._pending) > most:
            counts = self._pending.popleft().result()
            self._total = counts if self._total is None else self._total + counts

    def with_last(self, counts: WeightCounts) -> WeightCounts:
        """All of it, and these."""
        self._settle(0)
        return counts if self._total is None else self._total + counts


def _steps(
    total: _Sum,
    begin: Callable[[], Callable[[], WeightCounts]],
    sampler: Sampler,
    symbols: Future[Symbols | None],
    sibling: Future[Symbols | None] | None,
) -> Steps:
    """Counts of a weight and what contexts save; its symbols are told as soon as they are known.

    Yields:
      When XLA is to be awaited next.
    """
    own = None
    try:
        last = begin()
        yield
        counts = total.with_last(last())
        rows = sampler.rows()
        own = None if rows is None else contexts.symbols_of(rows, counts.code)
    finally:
        symbols.set_result(own)
    gains = None
    if own is not None:
        gains = contexts.begin_contexts(own, None if sibling is None else sibling.result())
    counts.described_bits()  # a report asks for it, and counts keep what they have found
    if gains is None:
        return counts, {}
    yield
    return counts, gains()


class _Siblings:
    """Symbols of weights, for those to come."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple, tuple[Future[Symbols | None], int]] = OrderedDict()
        self._bytes = 0

    def exchange(
        self, weight: Described, symbols: Future[Symbols | None], size: int
    ) -> Future[Symbols | None] | None:
        """Those of the weight's sibling, in whose place its own of so many bytes are kept."""
        role = role_of(weight.name) if size else Role(OTHER)
        if role.name == OTHER or (role.layer is None and role.expert is None):
            return None
        alike = "".join(c for c in weight.name if not c.isdigit())
        key = alike, weight.number_format.element.name, weight.shape
        sibling = self._kept.pop(key, None)
        self._bytes += size - (sibling[1] if sibling else 0)
        self._kept[key] = symbols, size
        while self._bytes > SIBLINGS:
            _, (_, left) = self._kept.popitem(last=False)
            self._bytes -= left
        return sibling[0] if sibling else None
