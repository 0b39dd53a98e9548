"""MXFP4 for TPU: codes to which a block's exponent is added as an integer, as float8_e5m2.

The rows of the packed matrix are summed over. They are padded to chunks of 128, which are four
blocks of 32, columns to multiples of 128. A number of E2M1 times a power of two is one of E5M2
while a column's powers are near each other: a block's number, relative to its column's least, is
added to codes that lie as E5M2 has them.

    words:  uint32[rows / 8, columns]   codes, the rows of a chunk in the order of `orders`, so that
                                        byte t of what is unpacked is of block t
    delta:  uint32[columns / 128, chunks, 128]   byte t: 4 * what is added to exponents of block t
    base:   int32[1, columns]   power of two that what comes out is multiplied by
    signs:  uint32[row tiles, n, columns]   bit r of a column of a row tile: the sign of its r-th
            zero, if there are any -0; see `zeros`
    others: int32[columns / 128, chunks, 6, n]   blocks that words lack, if there are any; see
            `other_blocks`
    options: native (how words have codes), large (whether `base` is too large for one power of two)

Words have a zero for both zeros. If `native` they are plain, as `nibbles` says; if not they have
three bits (e1 e0 m): the number is 2^(e - 1) * (1 + m / 2), without subnormals, which leaves a
zero's place to 001. m is stored inverted, so that 0 is the zero: 0 -> 000, 0.5 -> 001, 1 -> 011,
1.5 -> 010, ..., 6 -> 110.

Codes survive, and scales of blocks that are not all zeros.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped, UInt8

from jentropy import formats
from jentropy.formats import MXFP4, Format, Role
from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.layout import Extent, Layout
from jentropy.pallas_kernels.matrices import Matrices, Packed, padded, sized
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES, ceil_to
from jentropy.pallas_kernels.tpu import nibbles

from . import other_blocks, zeros
from .orders import BLOCK, CHUNK, ordered, restored

# Least and most that is added to an exponent, by `native`: E5M2's normal numbers have 1 to 30, and
# E2M1's are converted to 14 to 17, or placed at 0 to 3.
SPANS = {0: (1, 27), 1: (0, 13)}
BIAS = {0: 14 - 1, 1: 0}  # what 2^base makes up for
LEAST, MOST = 2, 252  # E8M0 codes of blocks whose numbers are normal in float32
ONE = 127  # E8M0 code of 2^0
MOST_BASE = ONE - 112  # up to which one power of two makes up for that and E5M2's bias


def holds(number_format: Format) -> bool:
    """E2M1 with an E8M0 scale."""
    parameters = number_format.parameters
    return (
        number_format.element.name == "FP4_E2M1"
        and len(parameters) == 1
        and parameters[0].element.name == "FP8_E8M0"
        and (parameters[0].role, parameters[0].of) == (Role.SCALE, None)
    )


def _fits(weight: Matrices) -> bool:
    blocks = weight.number_format.parameters[0].blocks(2)
    sound = blocks[0] % BLOCK == 0 < blocks[0] and blocks[1] == 1
    return sound and formats.GROUP_INDEX not in weight.codes


def shapes(weight: Matrices, signs: int | None = None) -> Packed | None:
    """Arrays without data, and options.

    Args:
      signs: words of `signs` to a row tile; None: as of Gaussian weights.
    """
    if not _fits(weight):
        return None
    (rows, columns), stack = weight.matrix, weight.stack
    high, wide = ceil_to(rows, CHUNK), ceil_to(columns, LANES)
    arrays = {
        "words": sized(jnp.uint32, *stack, high // 8, wide),
        "delta": sized(jnp.uint32, *stack, wide // LANES, high // CHUNK, LANES),
        "base": sized(jnp.int32, *stack, 1, wide),
    }
    tile = zeros.tile_rows(high)
    signs = zeros.words_of(tile) if signs is None else signs
    if signs:
        arrays["signs"] = sized(jnp.uint32, *stack, high // tile, signs, wide)
    return arrays, {"native": int(targets.current_tpu().native_e2m1), "large": 0}


def pack(weight: Matrices) -> Packed | None:
    """Lays out codes, summed over their rows; None if too many blocks have powers far apart."""
    if not _fits(weight):
        return None
    native = int(targets.current_tpu().native_e2m1)
    scale = weight.number_format.parameters[0]
    scales = jnp.repeat(weight.codes[scale.name], scale.blocks(2)[0] // BLOCK, axis=-2)
    scales = scales[..., : -(-weight.matrix[0] // BLOCK), :]
    scales = scales.reshape(-1, *scales.shape[-2:])
    made: list[dict[str, Array]] = []
    found: list[other_blocks.Found] = []
    for codes, powers in zip(weight.each, scales, strict=True):  # one matrix at a time is unpacked
        codes, powers = _whole(codes, powers)
        one = _pack(codes, powers, native=native)
        kept, negative = one.pop("codes"), one.pop("negative")
        signs = int(zeros.needed(kept, negative))
        signs = signs and max(signs, zeros.words_of(zeros.tile_rows(kept.shape[0])))
        one["signs"] = zeros.pack(kept, negative, words=signs)
        found.append(other_blocks.entries(np.asarray(one.pop("left")), codes, powers))
        made.append(one)
    signs = max(one["signs"].shape[1] for one in made)
    planned = shapes(weight, signs)
    assert planned is not None
    kept = ("words", "delta", "base")
    arrays: dict[str, Any] = {name: jnp.stack([m[name] for m in made]) for name in kept}
    if signs:
        each = [zeros.lengthened(one["signs"], signs) for one in made]
        arrays["signs"] = jnp.stack(each)
    grid = arrays["delta"].shape[1:3]
    lists = other_blocks.lists(found, grid)
    if lists.size:
        if other_blocks.RARE_SHARE * lists.nbytes > arrays["words"].nbytes:
            return None
        arrays["others"] = lists
    planned[1]["large"] = int(max(int(m["base"].max()) for m in made) > MOST_BASE)
    return weight.filled(planned, arrays)


@jax.jit
def _whole(codes: UInt8[Array, "rows columns"], scales: UInt8[Array, "blocks columns"]) -> Any:
    """Whole chunks, and whole registers of columns."""
    codes = padded(codes, CHUNK, LANES)
    missing = codes.shape[0] // BLOCK - scales.shape[0], codes.shape[1] - scales.shape[1]
    return codes, jnp.pad(scales, [(0, n) for n in missing])


@partial(jax.jit, static_argnames="native")
def _pack(codes: Array, scales: Array, *, native: int) -> dict[str, Array]:
    """Arrays of a matrix, what was packed, -0 among it, and the blocks that are left."""
    (rows, columns), (least, most) = codes.shape, SPANS[native]
    blocks = codes.reshape(-1, BLOCK, columns)
    empty = ((blocks & 7) == 0).all(1) & (scales != other_blocks.NAN)
    power = scales.astype(jnp.int32)
    sound = ~empty & (power >= LEAST) & (power <= MOST)
    low = jnp.where(sound, power, MOST).min(0, keepdims=True)
    high = jnp.where(sound, power, LEAST).max(0, keepdims=True)
    span, held = most - least, lambda base: sound & (power >= base) & (power <= base + most - least)
    top = jnp.maximum(low, high - span)
    low = jnp.where(held(low).sum(0) > held(top).sum(0), low[0], top[0])[None]
    low = jnp.where(sound.any(0, keepdims=True), low, ONE)
    kept = held(low)
    left = ~kept & ~empty
    codes = jnp.where(left[:, None], np.uint8(0), blocks).reshape(rows, columns)
    negative = codes == 8
    codes = jnp.where(negative, np.uint8(0), codes)
    delta = jnp.where(kept, power - low + least, least).astype(jnp.uint32).reshape(-1, 4, columns)
    delta = sum((delta[:, t] << (8 * t + 2) for t in range(1, 4)), delta[:, 0] << 2)
    delta = delta.reshape(-1, columns // LANES, LANES).swapaxes(0, 1)
    words = _words(ordered(codes, native), native)
    base = low - ONE + BIAS[native]
    return {
        "words": words,
        "delta": delta,
        "base": base,
        "codes": codes,
        "negative": negative,
        "left": left,
    }


def _words(codes: Array, native: int) -> Array:
    if native:
        return nibbles.pack_plain(codes)
    return nibbles.pack(codes & 8 | _renamed(codes & 7))


def _renamed(three: Array) -> Array:
    """Three bits of E2M1 to those that are stored, and back: 0 stays, m of all others is inverted.

    Since 0.5, which is 001 of E2M1, would be 000, and is 001 inverted.
    """
    return jnp.where(three > 1, three ^ 1, three)


def unpack(words: Array, native: int) -> UInt8[Array, "rows columns"]:
    """Codes of E2M1, without -0, in their own order."""
    if native:
        return restored(nibbles.unpack_plain(words), native)
    codes = nibbles.unpack(words)
    return restored(codes & 8 | _renamed(codes & 7), native)


def take(weight: ResidentTensor, ids: Int[Array, " ids"], dtype: Any) -> Shaped[Array, "ids rows"]:
    """Columns of the packed matrix, in plain JAX."""
    arrays, native = weight.arrays, weight.option("native")
    code = unpack(arrays["words"][:, ids], native)
    delta = arrays["delta"][ids // LANES, :, ids % LANES].T
    four = jnp.stack([(delta >> (8 * t + 2)).astype(jnp.int32) & 31 for t in range(4)], axis=1)
    base = arrays["base"][:, ids] + ONE - BIAS[native]
    scale = (four.reshape(-1, ids.size) + base - SPANS[native][0]).astype(jnp.uint8)
    if "signs" in arrays:
        negative = zeros.unpack(code == 0, arrays["signs"][..., ids])
        code = jnp.where(negative, np.uint8(8), code)
    if "others" in arrays:
        code, scale = other_blocks.put_back(code, scale, arrays["others"], ids)
    number_format = MXFP4.with_parameter("scale", block=(BLOCK, 1))
    return formats.dequantize(number_format, {"code": code, "scale": scale}, dtype).T


def extent(weight: ResidentTensor) -> Extent:
    """Rows and columns, padded to chunks and registers."""
    words = weight.arrays["words"]
    return (8 * words.shape[-2], words.shape[-1]), (CHUNK, LANES)


def decode(weight: ResidentTensor, dtype: Any) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded, in plain JAX: what kernels are held to."""
    return take(weight, jnp.arange(weight.arrays["words"].shape[-1]), dtype).T


LAYOUT = Layout(
    name="tpu_mxfp4",
    backend="tpu",
    reduces=-2,
    stacked=("words", 2),
    columns={"words": -1, "delta": -3, "base": -1, "signs": -1, "others": -4},
    rows={"words": -2, "delta": -2, "signs": -3, "others": -3},
    lists={"signs": (-2, (0,)), "others": (-1, (-1,))},
    unread=("signs",),
    largest=("large",),
    holds=holds,
    shapes=shapes,
    pack=pack,
    extent=extent,
    decode=decode,
    take=take,
    has_kernels=True,
)
