"""Vectors out of codebooks that are made for the matrix: one for each place, or sums of several.

Product quantisation (Jegou et al., 2011) has k-means centres for every vector of columns. Sums of M
vectors (V. Egiazarian et al., AQLM: extreme compression of large language models via additive
quantization, 2024) share their books: codes by beam search, books by least squares, in turn.
Columns are weighed by their inputs; codes are found last, each vector making up for the errors of
those before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, UInt8

from jentropy.formats import FP16, Format, SideArray, Step, codes_of
from jentropy.quantization.feedback import feedback_of
from jentropy.quantization.problem import Problem, Solution

from .alphabet import Alphabet
from .by_vectors import by_vectors
from .integer import integer_element
from .trellis import refuse_masks, root_mean_square

ROUNDS = 8  # of k-means
TURNS = 4  # of beam search and least squares
BEAM = 4  # partial sums that are kept
RIDGE = 1e-3  # weights of a vector that nothing may hang on
FITTED = 1 << 15  # vectors that books are made of, at the most


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebooks(Alphabet):
    """Vectors of the matrix' own books.

    Attributes:
      dimensions: columns of a vector.
      books: vectors that are added.
      bits: of a place in a book.
      shared: whether all vectors have the same books.
      damping: of the Hessian.
    """

    dimensions: int = 8
    books: int = 2
    bits: int = 8
    shared: bool = True
    damping: float = 0.01

    def solve(self, problem: Problem) -> Solution:
        """Codes and books. Their bits are fixed: a factor changes nothing."""
        refuse_masks(problem, self)
        weight, told = problem.weight, problem.statistics
        scale = root_mean_square(weight)
        feedback = feedback_of(told, self.damping)
        code, books = _solved(
            weight / scale,
            told.diagonal / told.diagonal.mean(),
            feedback,
            problem.drawn(),
            dimensions=self.dimensions,
            books=self.books,
            size=1 << self.bits,
            shared=self.shared,
        )
        stored = (books * scale).astype(jnp.float16)
        own = SideArray(name="codebooks", element=FP16, shape=books.shape)
        decoder = Step(name="codebook", settings=(("columns", weight.shape[1]),), arrays=(own,))
        number_format = Format(
            name=f"CODEBOOK{self.books}X{self.bits}",
            element=integer_element(self.bits, 0),
            decoder=decoder,
        )
        codes = {"code": code, "codebooks": codes_of(stored)}
        return Solution(number_format=number_format, codes=codes)


@partial(jax.jit, static_argnames=("dimensions", "books", "size", "shared"))
def _solved(
    weight: Float32[Array, "rows columns"],
    power: Float32[Array, " columns"],
    feedback: Float32[Array, "columns columns"] | None,
    key: Any,
    *,
    dimensions: int,
    books: int,
    size: int,
    shared: bool,
) -> tuple[UInt8[Array, "rows places"], Float32[Array, "groups books size dimensions"]]:
    rows, columns = weight.shape
    extra = -columns % dimensions
    vectors = jnp.pad(weight, ((0, 0), (0, extra))).reshape(rows, -1, dimensions)
    weights = jnp.pad(power, (0, extra)).reshape(-1, dimensions)
    groups = vectors.shape[1]
    if shared:
        flat = vectors.reshape(1, -1, dimensions)
        heavy = jnp.broadcast_to(weights, vectors.shape).reshape(1, -1, dimensions)
        stride = -(-flat.shape[1] // FITTED)
        flat, heavy = flat[:, ::stride], heavy[:, ::stride]
    else:
        flat = vectors.transpose(1, 0, 2)
        heavy = jnp.broadcast_to(weights[:, None], flat.shape)
    fit = partial(_fitted, books=books, size=size)
    made = lax.map(lambda one: fit(*one), (flat, heavy, jax.random.split(key, len(flat))))
    # What is kept has 16 bits, and codes are chosen by it.
    made = made.astype(jnp.float16).astype(jnp.float32)

    def search(part: Array, weights: Array, group: Array) -> tuple[dict[str, Array], Array]:
        own = made[0] if shared else made[group]
        code = _beam(part, jnp.broadcast_to(weights, part.shape), own)
        return {"code": code.astype(jnp.uint8)}, _sum(code, own)

    code = by_vectors(weight, feedback, search, dimensions)["code"]
    return code.transpose(1, 0, 2).reshape(rows, groups * books), made


def _sum(code: Array, books: Array) -> Array:
    """Sums of the vectors of codes [n, books], [n, d]."""
    return books[jnp.arange(books.shape[0])[None, :], code].sum(1)


def _fitted(vectors: Array, weights: Array, key: Any, *, books: int, size: int) -> Array:
    """Books [books, size, d] for vectors [n, d] with weights of their own."""
    left, made = vectors, []
    for own in jax.random.split(key, books):
        made.append(_means(left, weights, own, size))
        left = left - made[-1][_distances(left, weights, made[-1]).argmin(1)]
    all_books = jnp.stack(made)
    if books == 1:
        return all_books

    def turn(_: Array, now: Array) -> Array:
        return _least_squares(vectors, weights, _beam(vectors, weights, now), now)

    return lax.fori_loop(0, TURNS, turn, all_books)


def _distances(vectors: Array, weights: Array, book: Array) -> Array:
    """Weighted squared distances [n, size], less what no book changes."""
    cross = jnp.matmul(vectors * weights, book.T, precision="highest")
    return jnp.matmul(weights, jnp.square(book).T, precision="highest") - 2 * cross


def _means(vectors: Array, weights: Array, key: Any, size: int) -> Array:
    """k-means centres [size, d]; one that nothing is nearest to stays."""
    first = jax.random.choice(key, len(vectors), (size,), replace=len(vectors) < size)

    def step(_: Array, centres: Array) -> Array:
        nearest = _distances(vectors, weights, centres).argmin(1)
        total = jnp.zeros_like(centres).at[nearest].add(vectors * weights)
        share = jnp.zeros_like(centres).at[nearest].add(weights)
        return jnp.where(share > 0, total / jnp.where(share > 0, share, 1), centres)

    return lax.fori_loop(0, ROUNDS, step, vectors[first])


def _beam(vectors: Array, weights: Array, books: Array) -> Array:
    """Codes [n, books] whose sums are nearest, of those that a beam finds."""
    count, size = len(vectors), books.shape[1]
    codes = jnp.zeros((count, 1, 0), jnp.int32)
    left = vectors[:, None]
    for book in books:
        width = left.shape[1]
        flat = left.reshape(-1, vectors.shape[1])
        heavy = jnp.repeat(weights, width, axis=0)
        own = (jnp.square(flat) * heavy).sum(1)
        total = (_distances(flat, heavy, book) + own[:, None]).reshape(count, -1)
        keep = min(BEAM, total.shape[1])
        _, best = lax.top_k(-total, keep)
        before, place = best // size, best % size
        codes = jnp.concatenate(
            [jnp.take_along_axis(codes, before[..., None], 1), place[..., None]], axis=-1
        )
        left = jnp.take_along_axis(left, before[..., None], 1) - book[place]
    return codes[:, 0]


def _least_squares(vectors: Array, weights: Array, codes: Array, books: Array) -> Array:
    """Books whose sums are nearest to the vectors, codes being what they are."""
    number, size, dimensions = books.shape
    flat = codes + jnp.arange(number) * size
    length = number * size

    def one(numbers: Array, heavy: Array, before: Array) -> Array:
        pairs = flat[:, :, None] * length + flat[:, None, :]
        spread = jnp.broadcast_to(heavy[:, None, None], pairs.shape)
        normal = jnp.zeros(length * length).at[pairs.reshape(-1)].add(spread.reshape(-1))
        right = jnp.zeros(length).at[flat.reshape(-1)].add(jnp.repeat(numbers * heavy, number))
        ridge = RIDGE * (heavy.mean() + 1e-12)
        matrix = normal.reshape(length, length) + ridge * jnp.eye(length)
        return jax.scipy.linalg.solve(matrix, right + ridge * before, assume_a="pos")

    before = books.reshape(length, dimensions)
    made = lax.map(lambda d: one(*d), (vectors.T, weights.T, before.T))
    return made.T.reshape(number, size, dimensions)
