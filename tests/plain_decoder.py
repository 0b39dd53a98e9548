"""A decoder of compressed checkpoints in plain NumPy, written from FORMAT.md alone.

It knows nothing of jentropy and JAX. `read(path)` yields every tensor, `files(path)` every file.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib

import numpy as np
import xxhash

SLOTS, LANE, CHUNK, BLOCK = 4096, 8192, 1 << 20, 64
# Bits of a code, of those formats whose codes may lie several to a number.
CODE_BITS = dict.fromkeys(("FP4_E2M1", "INT4", "UINT4", "INT4_EXCESS8"), 4)
CODE_BITS |= dict.fromkeys(("INT8", "UINT8", "INT8_EXCESS128", "FP8_E4M3", "FP8_E8M0"), 8)
PLANES = {  # runs (lowest bit, bits) of each plane
    "BF16": [[(7, 8)], [(15, 1), (0, 7)]],
    "FP16": [[(7, 8)], [(15, 1), (0, 7)]],
    "FP32": [[(23, 8)], [(31, 1), (16, 7)], [(8, 8)], [(0, 8)]],
}
RAW_BITS = {"BF16": 6, "FP16": 9}


class Corrupt(Exception):
    """The data are not as FORMAT.md says."""


def require(condition, what):
    if not condition:
        raise Corrupt(what)


def weight(level):
    """floor(2^(20 + (level - 1) / 8)), by the exact eighth root."""
    x = 0
    for bit in reversed(range(35)):
        x += ((x + (1 << bit)) ** 8 <= 1 << (159 + level)) << bit
    return x if level else 0


WEIGHTS = [weight(level) for level in range(105)]


def frequencies(weights):
    total = sum(weights)
    f = [max(1, SLOTS * w // total) if w else 0 for w in weights]
    rest = [SLOTS * w % total if SLOTS * w >= total else -1 for w in weights]
    while under := SLOTS - sum(f):
        order = sorted(range(len(f)), key=lambda s: -rest[s] if under > 0 else -f[s])
        for s in order[: abs(under)]:
            f[s] += 1 if under > 0 else -(f[s] > 1)
    return np.array(f)


class Reader:
    def __init__(self, data):
        self.data, self.at = np.frombuffer(bytes(data), np.uint8), 0

    def array(self, dtype, count):
        size = np.dtype(dtype).itemsize * count
        part = self.data[self.at : self.at + size]
        require(part.size == size, "ends early")
        self.at += size
        return part.copy().view(dtype)

    def one(self, dtype="u1"):
        return int(self.array(dtype, 1)[0])

    def unary(self, count):
        bits = np.unpackbits(self.data[self.at :], bitorder="little")
        ends = np.flatnonzero(bits)[:count]
        require(ends.size == count, "ends early")
        self.at += (int(ends[-1]) + 8) // 8 if count else 0
        return np.diff(ends, prepend=-1) - 1

    def levels(self, tables, symbols):
        k = self.one()
        high = self.unary(tables * symbols)
        low = np.unpackbits(self.array("u1", (high.size * k + 7) // 8), bitorder="little")
        low = low[: high.size * k].reshape(high.size, k).astype(int)
        n = (high << k) + (low << np.arange(k)).sum(1)
        d = np.where(n % 2, -(n + 1) // 2, n // 2).reshape(tables, symbols)
        d[0] = np.cumsum(d[0]) + 32
        levels = np.cumsum(d, 0)
        require(levels.min() >= 0 and levels.max() < len(WEIGHTS), "level")
        return levels

    def classes(self, count):
        kinds = self.array("u1", self.one()).astype(int)
        require(kinds.size, "classes")
        return kinds[self.unary(count)] if kinds.size > 1 else np.full(count, kinds[0])

    def end(self):
        require(self.at == self.data.size, "bytes left over")


def stream(reader, n, f, table, escape):
    """Symbols, carries and what `escape` read of a stream; f: [tables, symbols]."""
    lanes = -(-n // LANE)
    states = reader.array("<u4", lanes).astype(np.int64)
    least = reader.one("<u2")
    full = least == 0xFFFF
    counts = reader.array("<u2" if full else "u1", lanes).astype(np.int64) + (0 if full else least)
    escapes = escape(reader)
    words = np.append(reader.array("<u2", int(counts.sum())), 0).astype(np.int64)
    below = np.cumsum(f, 1) - f
    lookup = np.stack([np.repeat(np.arange(row.size), row) for row in f])
    symbols, pointer = np.empty(n, int), np.cumsum(counts) - counts
    for begin in range(0, n, lanes):
        c = table[begin : begin + lanes]
        own = slice(0, c.size)  # the lanes that have a symbol in this step
        x = states[own]
        slot = x % SLOTS
        s = lookup[c, slot]
        x = f[c, s] * (x // SLOTS) + slot - below[c, s]
        short = x < 1 << 16
        x = np.where(short, x << 16 | words[np.minimum(pointer[own], words.size - 1)], x)
        pointer[own] += short
        states[own], symbols[begin : begin + lanes] = x, s
    sound = (states >> 16 == 1) & (pointer == np.cumsum(counts))
    require(sound.all(), "a lane ends elsewhere")
    return symbols, states & 0xFFFF, escapes


def octets(reader, levels, table, first, escapes):
    """Bytes of a stream whose tables have these levels; table: of each symbol."""
    f = np.stack([frequencies([WEIGHTS[q] for q in row]) for row in levels])
    read = lambda r: r.array("u1", r.one("<u4")) if escapes else None  # noqa: E731
    symbols, carry, escaped = stream(reader, table.size, f, table, read)
    require(not carry.any(), "a carry")
    found = symbols + first
    if escapes:
        require((symbols == f.shape[1] - 1).sum() == escaped.size, "escapes")
        found[symbols == f.shape[1] - 1] = escaped
    return found.astype(np.uint8)


def octets_of(head, reader, kind, count):
    require(kind <= 3, "kind")
    if kind == 0:
        return reader.array("u1", count)
    first, size = (0, 16) if kind == 3 else (head.one(), head.one() + 1)
    levels = head.levels(1, size + (kind == 2))
    if not count:
        return np.zeros(0, np.uint8)
    if kind < 3:
        return octets(reader, levels, np.zeros(count, int), first, kind == 2)
    f = frequencies([WEIGHTS[q] for q in levels[0]])
    f = frequencies(np.outer(f, f).reshape(-1).tolist())
    symbols, carry, _ = stream(reader, count, f[None], np.zeros(count, int), lambda _: None)
    require(not carry.any(), "a carry")
    return symbols.astype(np.uint8)


def planes(head, payload, n, fmt, itemsize):
    packed = fmt in CODE_BITS and CODE_BITS[fmt] < 8 * itemsize
    runs = PLANES.get(fmt) or [[(low, 8)] for low in reversed(range(0, 8 * itemsize, 8))]
    head, reader, found = Reader(head), Reader(payload), []
    count = n * itemsize if packed else n
    for i in range(1 if packed else len(runs)):
        kind, coded, octet, signs = head.one(), np.full(count, True), 0, 0
        if i and kind in (4, 5):
            coded, octet, signs = found[0] != head.one(), head.one(), kind - 4
            kind = head.one()
            require(reader.one("<u4") == coded.sum(), "numbers beside the constant")
        left = count - int(coded.sum())
        high = np.unpackbits(reader.array("u1", signs * -(-left // 8)), bitorder="little")
        found.append(np.full(count, octet, np.uint8))
        found[-1][~coded] |= high[:left] << 7 if signs else np.uint8(0)
        found[-1][coded] = octets_of(head, reader, kind, count - left)
    head.end()
    reader.end()
    if packed:
        return found[0].view(f"<u{itemsize}")
    if fmt not in PLANES:
        return np.stack(found[::-1], 1).reshape(-1).view(f"<u{itemsize}")
    codes = np.zeros(n, np.uint64)
    for plane, parts in zip(found, runs, strict=True):
        left = 8
        for low, bits in parts:
            left -= bits
            part = plane.astype(np.uint64) >> np.uint64(left) & np.uint64((1 << bits) - 1)
            codes |= part << np.uint64(low)
    return codes.astype(f"<u{itemsize}")


def context(head, payload, start, n, fmt, rows, columns):
    r = RAW_BITS[fmt]
    h = Reader(head)
    flags, tables, count = h.one(), h.one(), h.one() + 1
    first, base = h.one("<u2"), h.one("<u2")
    levels = h.levels(tables, count + flags)
    f = np.stack([frequencies([WEIGHTS[q] for q in row]) for row in levels])
    row, column = h.classes(rows), h.classes(columns)
    h.end()

    def escapes(reader):
        if not flags:
            return None
        short = reader.array("u1", reader.one("<u4")).astype(int)
        tops = np.where(short > 0, short + base, 0)
        tops[short == 255] = reader.array("<u2", int((short == 255).sum()))
        return tops

    reader, place = Reader(payload), start + np.arange(n)
    c = row[place // columns] + column[place % columns]
    symbols, carry, escaped = stream(reader, n, f, c % tables, escapes)
    top = first + c + symbols
    if flags:
        require((symbols == count).sum() == escaped.size, "escapes")
        top[symbols == count] = escaped
    raw, low = np.zeros(n, int), 0
    missing = carry.astype("<u2").view(np.uint8)
    for width in [w for w in (8, 4, 2, 1) if r & w]:
        size = -(-n // BLOCK) * 8 * width
        plane = np.concatenate([missing, reader.array("u1", size - missing.size)])
        missing = plane[:0]
        parts = plane.reshape(-1, 1, 8 * width) >> np.arange(0, 8, width)[:, None]
        raw |= (parts & (1 << width) - 1).reshape(-1)[:n].astype(int) << low
        low += width
    reader.end()
    mask = (1 << (r - 1)) - 1
    return (raw >> (r - 1) << 15 | top << (r - 1) & 0x7FFF | raw & mask).astype("<u2")


def scaled(head, payload, start, n, rows, columns):
    h = Reader(head)
    flags, first, count = h.one(), h.one(), h.one() + 1
    row, column = h.classes(rows), h.classes(columns)
    levels = h.levels(1 + int(row.max()) + int(column.max()), count + flags)
    h.end()
    reader, place = Reader(payload), start + np.arange(n)
    table = row[place // columns] + column[place % columns]
    found = octets(reader, levels, table, first, flags)
    reader.end()
    return found


def sparse(head, payload, n, fmt, itemsize):
    h, reader = Reader(head), Reader(payload)
    flags, common, mask_head = h.one(), h.one(f"<u{itemsize}"), h.array("u1", h.one("<u2"))
    codec, rest = h.one(), h.data[h.at :]
    require(flags < 2 and codec < 2, "flags or codec")
    m, sign = reader.one("<u4"), 8 * itemsize - 1
    mask = planes(mask_head, reader.array("u1", reader.one("<u4")), -(-n // 8), "RAW", 1)
    there = np.unpackbits(mask, bitorder="little")[:n] == 1
    require(there.sum() == m, "numbers beside the common one")
    signs = np.unpackbits(reader.array("u1", flags * -(-(n - m) // 8)), bitorder="little")
    found = np.full(n, common, f"<u{itemsize}")
    found[~there] |= (signs[: n - m].astype(int) << sign).astype(found.dtype) if flags else 0
    left = reader.data[reader.at :]
    require(m or not left.size, "bytes left over")
    if m and codec:
        found[there] = context(rest, left, 0, m, fmt, 1, n)
    elif m:
        found[there] = planes(rest, left, m, fmt, itemsize)
    return found


def hash_of(data):
    return f"{xxhash.xxh3_64_intdigest(data):016x}"


def array(path, name):
    size = json.loads((path / "state" / name / "zarr.json").read_text())["shape"][0]
    data = (path / "state" / name / "c" / "0").read_bytes()[:size]
    require(len(data) == size, f"{name} ends early")
    return data


def restored(d, b, form, has_sign):
    """Codes of differences from those of a base."""
    one, top = d.dtype.type(1), d.dtype.type(8 * d.itemsize - 1)
    sign = one << top if has_sign else one ^ one  # nothing is moved without one
    o = (b ^ (-(b >> top) * (sign >> top) | sign)) + ((d >> one) ^ -(d & one))
    return d ^ b if form == "xor" else o ^ (-(one ^ o >> top) * (sign >> top) | sign)


def entry(path, item, bases=()):
    """Bytes of an entry's codes; `bases`: by which those of its checkpoint are told."""
    shape, fmt, base = item["shape"], item["format"], b""
    itemsize = max(1, int(re.search(r"\d+", item["dtype"] + " 8")[0]) // 8)  # of int4 and bool 1
    if "delta" in item:
        base = entry(bases[0], index(bases[0])[1]["tensors"][item["base"]], bases[1:])
    fmt, has_sign = "RAW" if base else fmt, fmt[:2] in ("BF", "FP") and fmt != "FP8_E8M0"
    head, at, out = base64.b64decode(item.get("head", "")), 0, b""
    size, rows, row = math.prod(shape), math.prod(shape[:-1]), shape[-1] if shape else 1
    step = CHUNK // row * row if 0 < row <= CHUNK else CHUNK
    decoders = {
        "stored": lambda payload, at, n: payload,
        "deflate": lambda payload, at, n: zlib.decompress(payload),
        "planes": lambda payload, at, n: planes(head, payload, n, fmt, itemsize).tobytes(),
        "context": lambda payload, at, n: context(head, payload, at, n, fmt, rows, row).tobytes(),
        "scaled": lambda payload, at, n: scaled(head, payload, at, n, rows, row).tobytes(),
        "sparse": lambda payload, at, n: sparse(head, payload, n, fmt, itemsize).tobytes(),
    }
    require(item["codec"] in decoders, f"codec {item['codec']!r}")
    for bundle, offset, length, *hashes in item["chunks"]:
        n = min(step, size - at)
        payload = array(path, f"bundles.{bundle:05d}")[offset : offset + length]
        require(hash_of(payload) == hashes[0], f"{item['name']}: hash of a payload")
        codes = decoders[item["codec"]](payload, at, n)
        require(len(codes) == n * itemsize, f"{item['name']}: size of a chunk")
        if base:
            both = [np.frombuffer(p, f"u{itemsize}") for p in (codes, base[at * itemsize :])]
            codes = restored(both[0], both[1][:n], item["delta"], has_sign).tobytes()
        require(hash_of(codes) == hashes[-1], f"{item['name']}: hash of codes")
        out, at = out + codes, at + n
    require(at == size, f"{item['name']}: chunks")
    return out


def index(path):
    told = json.loads((path / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]["jentropy"]
    names = [name for name in ("index", "copy") if (path / "state" / name).is_dir()]
    data = {hash_of(d): d for d in (array(path, n) for n in names)}.get(told["index_xxh3_64"])
    require(data, "hash of the index")
    content = json.loads(zlib.decompress(data))
    require(told["version"] in (1, 2, 3) and content["jentropy"] == told["version"], "version")
    return path, content


def files(path):
    """Every file of a compressed checkpoint: its name and its bytes."""
    path, content = index(path)
    tensors, blobs = content["tensors"], content["blobs"]
    for file in content["files"]:
        parts = [entry(path, blobs[file["blob"]])]
        for part in file.get("parts", ()):
            if isinstance(part, int) or "blob" in part:
                item = tensors[part] if isinstance(part, int) else blobs[part["blob"]]
                parts.append(entry(path, item))
            else:
                fields = [tensors[i] for i in part["fields"]]
                sides = [np.frombuffer(entry(path, f), "u1") for f in fields]
                sides = [s.reshape(f["shape"][0], -1) for s, f in zip(sides, fields, strict=True)]
                parts.append(np.concatenate(sides, 1).tobytes())
        yield file["path"], b"".join(parts)


def read(path, *bases):
    """Every tensor of a compressed checkpoint: its name and the bytes of its codes."""
    for item in index(path)[1]["tensors"]:
        yield item["name"], entry(path, item, bases)
