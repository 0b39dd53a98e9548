"""The archive codec's jitted functions through the compilers of TPU and GPU, on any machine.

Nothing is run: the compilers of extra `aot` need no device. Each backend compiles in a process of
its own, which is this file, since the compilers read their environment once.
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest

from jentropy import jax_internals
from jentropy.codecs import calls, on_device, rans, rawbits
from jentropy.pallas_kernels.profiling import compiling

from .compilers import needs, outputs

LANES, STEPS = 1 << 20, 512
WORDS = 1 << 28
CODES = 1 << 28  # of a call of `split` or `merge`; on a v5e twice as many leave no room
KEPT = 32  # bytes that `rans` keeps for a lane: states, what was looked up, pointers, words


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What a device that is compiled for has."""

    kind: str  # of the device, as the compiler names it
    memory_bytes: int
    raw_bytes: int  # temporary bytes of a code in `split` and `merge`, at the most
    again: int  # how often as much as the results may come on top


BACKENDS = {
    "v5e": Backend(
        kind="TPU v5 lite",
        memory_bytes=16 << 30,
        raw_bytes=33,  # parts of a block are 8 to 32 codes, which a register pads to 128
        again=jax_internals.COPIES_OF_LOOPS,
    ),
    "h200": Backend(
        kind="NVIDIA H200",
        memory_bytes=141 * 10**9,
        raw_bytes=0,  # one kernel
        again=0,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A call to compile."""

    function: Any  # jitted
    arguments: tuple[Any, ...]  # without data
    static: dict[str, Any]
    steps: int  # of its loop; 0 without one
    temporary_bytes: int | None  # at the most; None is `Backend.raw_bytes` for every code


def of(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))


def decoding(tables: int) -> Case:
    return Case(
        function=rans.decode,
        arguments=(
            of("uint16", WORDS),
            of("uint32", LANES),
            of("uint32", LANES),
            of("uint32", tables * rans.SLOTS),
            of("uint8", STEPS, LANES),
        ),
        static={},
        steps=STEPS,
        temporary_bytes=KEPT * LANES,  # no second copy of the tables' numbers or symbols
    )


def splitting(bits: int) -> Case:
    scalars = [of("uint16")] * 2
    return Case(
        function=rawbits.split,
        arguments=(of("uint16", CODES), of("uint8", CODES), *scalars),
        static={"bits": bits},
        steps=0,
        temporary_bytes=None,
    )


def merging(bits: int) -> Case:
    planes = [of("uint8", rawbits.plane_bytes(CODES, width)) for width in rawbits.widths(bits)]
    return Case(
        function=rawbits.merge,
        arguments=(of("uint8", CODES), of("uint8", CODES), planes, of("uint16")),
        static={"bits": bits},
        steps=0,
        temporary_bytes=None,
    )


CHUNK = 1 << 20  # codes of a chunk, in rows of ROW
ROW = 4096
CALL = 1 << 16  # lanes of a call that a chunk is laid into and taken from


def finishing(bits: int) -> Case:
    """From a call's symbols to a chunk's codes."""
    width = calls.lane_count(CHUNK)
    planes = [of("uint8", rawbits.plane_bytes(CHUNK, w)) for w in rawbits.widths(bits)]
    planes[0] = of("uint8", planes[0].shape[0] - 2 * width)
    scalars = [of("uint16"), of("int32")]
    return Case(
        function=on_device.codes_of,
        arguments=(
            of("uint8", rans.LANE, CALL),
            of("uint32", CALL),
            of("uint8", CHUNK),
            planes,
            of("uint16", 2048),
            *scalars,
        ),
        static={"bits": bits},
        steps=0,
        temporary_bytes=64 * CHUNK,
    )


CASES = {
    "contexts": Case(
        function=on_device.contexts_of,
        arguments=(of("uint8", CHUNK // ROW), of("uint8", ROW), of("int32")),
        static={"size": CHUNK},
        steps=0,
        temporary_bytes=2 * CHUNK,
    ),
    "lay": Case(
        function=on_device.lay,
        arguments=(
            of("uint8", rans.LANE, CALL),
            of("uint8", CHUNK),
            of("uint8"),
            of("uint8"),
            of("int32"),
        ),
        static={},
        steps=0,
        temporary_bytes=8 * CHUNK,
    ),
    "codes-bf16": finishing(6),
    "codes-fp16": finishing(9),
    "decode-few": decoding(rans.FEW),
    "decode-many": decoding(256),
    "encode": Case(
        function=rans.encode,
        arguments=(
            of("uint8", STEPS, LANES),
            of("uint8", STEPS, LANES),
            of("uint32", LANES),
            of("uint32", 256 * 256),
        ),
        static={},
        steps=STEPS,
        temporary_bytes=2 * STEPS * LANES + KEPT * LANES,  # words before they are transposed
    ),
    "split-bf16": splitting(6),
    "split-fp16": splitting(9),
    "merge-bf16": merging(6),
    "merge-fp16": merging(9),
}


def compile_case(case: Case, target: str) -> dict[str, Any]:
    """What the compiler made of a case, or its error."""
    start = time.perf_counter()
    try:
        compiled = compiling.compile_for(target, case.function, *case.arguments, **case.static)
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error)}
    seconds = time.perf_counter() - start
    text, memory = compiled.as_text(), compiled.memory_analysis()
    (device,) = jax.tree.leaves(compiled.output_shardings)[0].device_set
    return {
        "kind": device.device_kind,
        "seconds": round(seconds, 2),
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "loops": len(re.findall(r"= .* while\(", text)),
        "counts": [int(n) for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", text)],
        "calls": sorted(set(re.findall(r'custom_call_target="([^"]*)"', text))),
        "transfers": sorted(set(re.findall(r" ((?:infeed|outfeed|send|recv)[a-z-]*)\(", text))),
    }


@pytest.fixture(scope="module", params=[pytest.param(t, marks=needs(t)) for t in BACKENDS])
def compiled(request: pytest.FixtureRequest) -> tuple[Backend, dict[str, dict[str, Any]]]:
    """A backend and what its compiler made of every case."""
    return BACKENDS[request.param], outputs(("-m", __name__, request.param))[0]


@pytest.mark.parametrize("name", CASES)
def test_compiles_for_a_device_and_fits(compiled, name):
    backend, results = compiled
    case, result = CASES[name], results[name]
    assert "error" not in result, result["error"]
    assert result["kind"] == backend.kind

    needed = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(case.arguments))
    given = jax.eval_shape(
        lambda *arguments: case.function(*arguments, **case.static), *case.arguments
    )
    made = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(given))
    small = 1 << 16  # scalars in their tiles, the table of a tuple
    assert needed <= result["argument_bytes"] <= needed + small
    assert made <= result["output_bytes"] <= made + small
    limit = case.temporary_bytes
    if limit is None:
        limit = backend.raw_bytes * CODES
    limit += backend.again * made
    assert result["temporary_bytes"] <= limit + small
    whole = ("argument_bytes", "output_bytes", "temporary_bytes")
    assert sum(result[part] for part in whole) < backend.memory_bytes


@pytest.mark.parametrize("name", CASES)
def test_stays_on_the_device_in_one_loop(compiled, name):
    _, results = compiled
    case, result = CASES[name], results[name]
    assert "error" not in result, result["error"]
    assert result["transfers"] == []
    assert not [call for call in result["calls"] if "callback" in call.lower()]
    if case.steps:
        assert result["loops"] == 1
        assert case.steps in result["counts"], "the loop takes a step for each symbol of a lane"
    else:
        assert result["loops"] == 0


def main(target: str) -> None:
    """Compiles every case and prints what came of it, as JSON."""
    compiling.prepare(target)
    print(json.dumps({key: compile_case(case, target) for key, case in CASES.items()}))


if __name__ == "__main__":
    main(sys.argv[1])
