"""Decoders and transforms of a matrix in plain NumPy, written from FORMAT.md alone."""

from __future__ import annotations

import itertools

import numpy as np

CHECKS = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}
PRIMES = {12: 11, 20: 19, 28: 13, 36: 17, 44: 43, 60: 59, 76: 37, 84: 83, 108: 107}


def even_levels(levels, code, bits=8):
    place = code.astype(int) - ((1 << bits - 1) - len(levels) // 2)
    inside = np.clip(place, 0, len(levels) - 1)
    away = (place - inside).astype(np.float32)
    step = np.where(away < 0, levels[1] - levels[0], levels[-1] - levels[-2])
    return levels[inside] + away * step


def trellis(settings, code, levels):
    (h0, h1), bits = CHECKS[settings["states"]], settings["states"].bit_length() - 1
    numbers = even_levels(levels, code)
    for row, codes in zip(numbers, code.tolist(), strict=True):
        state = 0
        for place, c in enumerate(codes):
            odd = state % 2
            row[place] = -row[place] if odd else row[place]
            z, after = c % 2 ^ odd, 0
            for i in range(bits):
                bit = state >> i + 1 & 1 ^ (h0 >> i + 1 & odd) ^ (h1 >> i + 1 & z)
                after |= bit << i
            state = after
    return numbers


def e8(settings, code, levels, words):
    data = words[:, :, None].astype(int) >> np.arange(4) & 1
    three = [sum(data[..., j] for j in range(4) if j != i) % 2 for i in range(4)]
    negated = np.concatenate([data, np.stack(three, -1)], -1).reshape(len(code), -1)
    numbers = even_levels(levels, code)
    return np.where(negated[:, : code.shape[1]] == 1, -numbers, numbers)


def ball(settings, code):
    vectors = sorted(
        itertools.product((0.5, 1.5, 2.5), repeat=8), key=lambda v: sum(x * x for x in v)
    )
    rows = []
    for row in code.tolist():
        numbers = []
        for c in row:
            signs = [-1 if c >> i & 1 else 1 for i in range(8, 15)]
            part = [s * x for s, x in zip(signs, vectors[c & 255], strict=False)]
            last = vectors[c & 255][7]
            part.append(-last if (sum(part) + last) % 2 else last)
            numbers += [x + (-0.25 if c >> 15 else 0.25) for x in part]
        rows.append(numbers[: settings["columns"]])
    return np.array(rows, np.float32)


def codebook(settings, code, books):
    groups, number, size, _ = books.shape
    rows = []
    for row in np.minimum(code, size - 1).reshape(len(code), -1, number).tolist():
        parts = []
        for v, places in enumerate(row):
            total = books[v % groups, 0, places[0]]
            for m in range(1, number):
                total = total + books[v % groups, m, places[m]]
            parts.append(total)
        rows.append(np.concatenate(parts)[: settings["columns"]])
    return np.stack(rows)


def planes(settings, code, scales, groups):
    total = None
    for p, scale in enumerate(scales):
        own = scale[:, np.minimum(groups, scale.shape[1] - 1)]
        part = np.where(code >> p & 1 == 1, own, -own)
        total = part if total is None else total + part
    return total


def sign_ranks(settings, code, left, right):
    total = 0
    for p in range(len(left)):
        size = left[p] @ right[p]
        total = total + np.where(code >> p & 1 == 1, size, -size)
    return total


def block_matrix(block):
    order = next(m for m in (1, *PRIMES) if block % m == 0 and (block // m).bit_count() == 1)
    base = np.ones((1, 1))
    if order > 1:
        q = PRIMES[order]
        squares = {i * i % q for i in range(1, q)}
        e = -1 if q % 4 == 3 else 1
        core = np.zeros((q + 1, q + 1))
        core[0, 1:], core[1:, 0] = 1, e
        for i, j in itertools.product(range(q), repeat=2):
            core[i + 1, j + 1] = 0 if i == j else 1 if (i - j) % q in squares else -1
        one, two = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
        eye = np.eye(q + 1)
        base = core + eye if e == -1 else np.kron(core, one) + np.kron(eye, two)
    while len(base) < block:
        base = np.kron(base, np.array([[1, 1], [1, -1]]))
    return base / np.sqrt(block)


def hadamard(settings, numbers, signs):
    lines = numbers if settings["axis"] else numbers.T
    block = settings["block"]
    lines = (lines.reshape(-1, block) @ block_matrix(block).T).reshape(lines.shape)
    lines = np.where(signs % 2 == 1, -lines, lines)
    return lines if settings["axis"] else lines.T


def outliers(settings, numbers, gaps, values):
    flat = numbers.reshape(-1).copy()
    flat[np.cumsum(gaps.astype(int))] = values
    return flat.reshape(numbers.shape)


def residual_columns(settings, numbers, places, code, scale):
    numbers = numbers.copy()
    for i, place in enumerate(places):
        numbers[:, place] += code[:, i] * scale[:, i // settings["block"]]
    return numbers


DECODERS = {
    "trellis": trellis,
    "e8": e8,
    "ball": ball,
    "codebook": codebook,
    "planes": planes,
    "sign_ranks": sign_ranks,
}
TRANSFORMS = {
    "columns": lambda settings, numbers, scale: numbers * scale,
    "hadamard": hadamard,
    "permutation": lambda settings, numbers, places: numbers[:, places],
    "low_rank": lambda settings, numbers, left, right: numbers + left @ right,
    "outliers": outliers,
    "residual_columns": residual_columns,
    "shift": lambda settings, numbers, shift: numbers,
}
