"""Counts and contexts of one weight after another, in threads."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, runtime_checkable

from jentropy.formats import Format

from . import contexts
from .contexts import Gain, Sampler, Symbols
from .roles import OTHER, role_of
from .weights import WeightCounts, measure_weight

SIBLINGS = 64 << 20  # bytes of symbols that are kept for weights to come

Contexts = Mapping[str, Gain]
Runs = Iterator[Mapping[str, Any]]


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
) -> Iterator[tuple[Weight, WeightCounts, Callable[[], Contexts]]]:
    """Measures weights, reading ahead of what is done by as many as there are workers.

    Args:
      weights: each with its codes, in runs that `measure_weight` takes. Runs are used up before the
        next weight is asked for.
      workers: threads.
      with_contexts: whether to measure what contexts save.

    Yields:
      The weight, its counts, and what waits for what every context saves: nothing of a weight that
      is too small or has neither exponents nor codes of four bits.

    Example:
      >>> import numpy as np
      >>> from types import SimpleNamespace
      >>> from jentropy.formats import FORMATS
      >>> w = SimpleNamespace(name="w", shape=(64, 128), number_format=FORMATS["FP8_E4M3"])
      >>> codes = {"code": np.tile(np.arange(0, 128, 8, dtype=np.uint8), (64, 8))}
      >>> ((_, counts, gains),) = measure_all([(w, iter([codes]))], 2, with_contexts=True)
      >>> counts.weights, round(gains()["left"].bits, 1), round(gains()["row"].bits, 1)
      (8192, 4.0, 0.0)
    """
    with ThreadPoolExecutor(workers) as pool:
        meter = _Meter(pool, workers)
        waiting: deque[tuple[Weight, _Sum, Sampler]] = deque()
        for weight, runs in weights:
            shape = weight.number_format.code_shape(weight.shape) if with_contexts else ()
            total, sampler = _Sum(), Sampler(shape)
            for codes in runs:
                sampler.add(codes["code"])
                total.add(pool.submit(measure_weight, codes, weight.number_format), workers)
            waiting.append((weight, total, sampler))
            if len(waiting) > workers:
                yield meter.finished(*waiting.popleft())
        while waiting:
            yield meter.finished(*waiting.popleft())


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

    def result(self) -> WeightCounts:
        """All of it."""
        self._settle(0)
        assert self._total is not None
        return self._total


class _Meter:
    """Starts measuring contexts, and keeps symbols of those who will be siblings."""

    def __init__(self, pool: Executor, workers: int):
        self._pool, self._workers = pool, workers
        self._pending: deque[Future[dict[str, Gain]]] = deque()
        self._siblings: OrderedDict[tuple, Symbols] = OrderedDict()

    def finished(
        self, weight: Weight, total: _Sum, sampler: Sampler
    ) -> tuple[Weight, WeightCounts, Callable[[], Contexts]]:
        counts = total.result()
        rows = sampler.rows()
        symbols = None if rows is None else contexts.symbols_of(rows, counts.code)
        if symbols is None:
            return weight, counts, dict
        while len(self._pending) > self._workers:
            self._pending.popleft().result()
        sibling = self._exchange(weight, symbols)
        gains = self._pool.submit(contexts.measure_contexts, symbols, sibling)
        self._pending.append(gains)
        return weight, counts, gains.result

    def _exchange(self, weight: Described, symbols: Symbols) -> Symbols | None:
        """The weight's sibling, in whose place the weight is kept."""
        role = role_of(weight.name)
        if role.name == OTHER or (role.layer is None and role.expert is None):
            return None
        alike = "".join(c for c in weight.name if not c.isdigit())
        key = alike, weight.number_format.element.name, weight.shape
        sibling = self._siblings.pop(key, None)
        self._siblings[key] = symbols
        while sum(kept.symbols.nbytes for kept in self._siblings.values()) > SIBLINGS:
            self._siblings.popitem(last=False)
        return sibling
