"""Numbers of quantised weights in plain NumPy, written from FORMAT.md alone; see `plain_decoder`.

It knows nothing of jentropy and JAX. `weights(path)` yields every quantised weight of a pytree.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from . import plain_decoder

KNOWN = {  # elements: dtype of the numbers, bits, what a code is above its number
    "BF16": (ml_dtypes.bfloat16, 16, 0),
    "FP16": (np.float16, 16, 0),
    "FP32": (np.float32, 32, 0),
    "FP8_E4M3": (ml_dtypes.float8_e4m3fn, 8, 0),
    "FP8_E5M2": (ml_dtypes.float8_e5m2, 8, 0),
    "FP8_E8M0": (ml_dtypes.float8_e8m0fnu, 8, 0),
    "FP4_E2M1": (ml_dtypes.float4_e2m1fn, 4, 0),
    "INT8": (np.int8, 8, 0),
    "INT4": (ml_dtypes.int4, 4, 0),
    **{f"UINT{bits}": (np.uint8, bits, 0) for bits in (4, 6, 8)},
    **{f"INT{bits}_EXCESS{1 << bits - 1}": (np.uint8, bits, 1 << bits - 1) for bits in (4, 6, 8)},
}


def element(told, codes):
    """Numbers of codes."""
    if isinstance(told, str):
        dtype, _, excess = KNOWN[told]
        return codes.view(dtype).astype(np.float32) - np.float32(excess)
    if "raw" in told:
        return codes
    if "table" in told:
        return np.array(told["table"], np.float32)[codes]
    if "bias" not in told:
        return codes.astype(np.float32) - np.float32(told.get("excess", 0))
    parts, left = {}, codes.astype(np.int64)
    for name, bits in reversed(told["fields"].items()):
        parts[name], left = left % (1 << bits), left >> bits
    exponent = parts["exponent"]
    fraction = parts.get("mantissa", 0) / (1 << told["fields"].get("mantissa", 0))
    magnitude = (fraction + (exponent > 0)) * 2.0 ** (np.maximum(exponent, 1) - told["bias"])
    return np.where(parts.get("sign", 0) == 1, -magnitude, magnitude).astype(np.float32)


def spread(numbers, block, shape):
    """An entry for every weight that it serves."""
    block = [0] * len(shape) if block is None else [1] * (len(shape) - len(block)) + block
    for axis, (size, n) in enumerate(zip(block, shape, strict=True)):
        numbers = numbers.take(np.zeros(n, int) if size == 0 else np.arange(n) // size, axis)
    return numbers


def scaled(numbers, of, told, codes, shape):
    """Numbers, or those of a parameter, once their parameters have acted on them."""
    parameters = [p for p in told.get("parameters", []) if p.get("of") == of]
    for role in ("zero_point", "scale", "divisor", "offset"):
        for p in parameters:
            if p.get("role", "scale") != role:
                continue
            own = element(p["element"], codes[p["name"]])
            own = spread(own, p["block"], shape) if of is None else own
            inner = [q for q in told["parameters"] if q.get("of") == p["name"]]
            for q in inner:  # on every weight: what a block shares is the same for all of it
                factor = spread(element(q["element"], codes[q["name"]]), q["block"], shape)
                own = own / factor if q.get("role") == "divisor" else own * factor
            if role == "scale":
                numbers = numbers * own
            else:
                numbers = numbers / own if role == "divisor" else numbers - own
    return numbers


def weight(told, codes):
    """Numbers of one matrix."""
    code, step = codes["code"], told.get("decoder", {"name": "elementwise"})
    arrays = [element(a["element"], codes[a["name"]]) for a in step.get("arrays", [])]
    if step["name"] == "elementwise":
        numbers = element(told["element"], code)
    elif step["name"] == "levels":
        numbers = arrays[0][np.minimum(code, arrays[0].size - 1)]
    else:
        assert step["name"] == "choices", step
        table = arrays[1][:, np.arange(code.shape[1]) // step["settings"]["group"]].astype(int)
        numbers = arrays[0][table, np.minimum(code, arrays[0].shape[1] - 1)]
    numbers = scaled(numbers, None, told, codes, numbers.shape)
    for transform in reversed(told.get("transforms", [])):
        assert transform["name"] == "columns", transform
        (own,) = transform["arrays"]
        numbers = numbers * element(own["element"], codes[own["name"]])
    return numbers


def weights(path):
    """Every quantised weight in a dict that was saved: its key and its numbers."""
    path, content = plain_decoder.index(path)
    for key, node in content["tree"]["dict"]:
        codes = {}
        for name, at in node["quantized"]:
            item = content["tensors"][at]
            data = plain_decoder.entry(path, item)
            codes[name] = np.frombuffer(data, f"<u{len(data) // math.prod(item['shape'])}")
            codes[name] = codes[name].reshape(item["shape"])
        yield key, weight(content["formats"][node["format"]], codes)
