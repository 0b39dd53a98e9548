"""Published tables of numbers, all of magnitude up to 1, or up to what they are scaled to.

Each has as many numbers as a code of its bits has values. Two that are alike have two codes.
"""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np

from jentropy.errors import InputError
from jentropy.formats import ElementFormat, Field


def normal_float(bits: int) -> list[float]:
    """Quantiles of the normal distribution with a zero of its own: NF4.

    References:
      Dettmers et al. 2023, QLoRA, arXiv 2305.14314, appendix E.

    Example:
      >>> [round(x, 4) for x in normal_float(4)][:3]
      [-1.0, -0.6962, -0.5251]
    """
    half, offset = 1 << (bits - 1), 0.5 * (1 / 32 + 1 / 30) if bits == 4 else 0.5 / (1 << bits)
    edge = 1 - offset
    inverse = NormalDist().inv_cdf
    above = [inverse(p) for p in np.linspace(edge, 0.5, half + 1)[:-1]]
    below = [-inverse(p) for p in np.linspace(edge, 0.5, half)[:-1]]
    largest = inverse(edge)
    return sorted(x / largest for x in (*above, *below, 0.0))


def powers_of_two(bits: int) -> list[float]:
    """Zero and signed powers of two from 1 down.

    References:
      Zhou et al. 2017, INQ, arXiv 1702.03044; Przewlocka-Rus et al. 2022, arXiv 2203.05025.

    Example:
      >>> powers_of_two(3)
      [-1.0, -0.5, -0.25, 0.0, 0.0, 0.25, 0.5, 1.0]
    """
    magnitudes = [0.0, *(2.0**-i for i in range((1 << (bits - 1)) - 1))]
    return sorted((*magnitudes, *(0.0 - m for m in magnitudes)))


def additive_powers_of_two(bits: int) -> list[float]:
    """Signed sums of two powers of two (APoT): more numbers near the largest.

    References:
      Li et al. 2020, Additive powers-of-two quantization, arXiv 1909.13144, equation 5.

    Example:
      >>> [round(x, 2) for x in additive_powers_of_two(4)[8:]]
      [0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]
    """
    pairs, single = divmod(bits - 1, 2)  # one for the sign; a term takes two, or the one left
    terms = [[0.0, *(2.0 ** -(i + j * pairs) for j in range(2))] for i in range(pairs)]
    for i, term in enumerate(terms):
        term.append(2.0 ** -(i + 2 * pairs + single))
    if single:
        terms.append([0.0, 2.0 ** -(2 * pairs)])
    sums = [math.fsum(chosen) for chosen in itertools.product(*terms)]
    magnitudes = [total / max(sums) for total in sums]
    return sorted((*magnitudes, *(0.0 - m for m in magnitudes)))


def posit(bits: int, exponent: int = 1) -> list[float]:
    """Posits of a number of exponent bits; the one code that is no real number means 0.

    References:
      Posit Working Group 2022, Standard for Posit Arithmetic; Gustafson, Yonemoto 2017.

    Example:
      >>> table = posit(8)
      >>> table[0x40], table[0x41], table[1], table[0xC0]
      (1.0, 1.0625, 0.000244140625, -1.0)
    """

    def number(code: int) -> float:
        half = 1 << (bits - 1)
        if code in (0, half):
            return 0.0
        magnitude = code if code < half else (1 << bits) - code
        text = f"{magnitude:0{bits}b}"[1:]
        run = len(text) - len(text.lstrip(text[0]))
        regime = run - 1 if text[0] == "1" else -run
        rest = text[run + 1 :]
        power = int(rest[:exponent].ljust(exponent, "0") or "0", 2)
        fraction = rest[exponent:]
        significand = 1 + (int(fraction, 2) / (1 << len(fraction)) if fraction else 0)
        value = significand * 2.0 ** (regime * (1 << exponent) + power)
        return value if code < half else -value

    return [number(code) for code in range(1 << bits)]


def bipolar(bits: int) -> list[float]:
    """Odd numbers: sums of bits that are -1 or 1 each, which have no zero.

    References:
      Ma et al. 2024, APT-LLM, arXiv 2508.19087 (bipolar-INT).

    Example:
      >>> bipolar(2)
      [-3.0, -1.0, 1.0, 3.0]
    """
    return [float(2 * i - (1 << bits) + 1) for i in range(1 << bits)]


LEVEL_TABLES = {
    "NF": normal_float,
    "POT": powers_of_two,
    "APOT": additive_powers_of_two,
    "POSIT": posit,
    "BIPOLAR": bipolar,
}


def table_element(name: str, bits: int) -> ElementFormat:
    """Codes of so many bits that mean the numbers of a table.

    Args:
      name: in `LEVEL_TABLES`.
      bits: of a code.

    Raises:
      InputError: no such table.

    Example:
      >>> table_element("BIPOLAR", 2).decode(np.uint8([0, 3])).tolist()
      [-3.0, 3.0]
    """
    if name not in LEVEL_TABLES:
        raise InputError("table", expected=" or ".join(LEVEL_TABLES), found=name)
    numbers = tuple(float(np.float32(x)) for x in LEVEL_TABLES[name](bits))
    return ElementFormat(
        name=f"{name}{bits}",
        dtype=np.dtype(np.uint8 if bits <= 8 else np.uint16),
        fields=(Field(name="code", bits=bits),),
        table=numbers,
    )
