"""`python -m jentropy.models.footprint CONFIG --tpu v5e`: whether a model fits, without a device.

The real compiler makes the programs of generation for the TPU that is named, from shapes alone: a
part of the prompt, and one token more. It says how many bytes the device holds while they run, and
refuses what is too large. Weights lie as `load` would lay them out; extra `aot` has the compiler.
`jentropy.models.token_step` says how fast a token can be.
Exit codes: 0 done, 1 the compiler refuses the compressed weights, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jentropy import pallas_kernels as kernels
from jentropy.checkpoints import Checkpoint, open_checkpoint
from jentropy.checkpoints.contents import CONFIG, read_json
from jentropy.errors import InputError, JentropyError, UnsupportedError
from jentropy.formats import FORMATS, Format
from jentropy.pallas_kernels import ResidentTensor, abstract_weight
from jentropy.pallas_kernels.bf16 import ESCAPE_RATE
from jentropy.pallas_kernels.profiling import compiling
from jentropy.pallas_kernels.targets import TPUS, taken_for

from .config import DecoderConfig
from .decoder import Decoder
from .generation import GREEDY, advance_in_place, numbers_of, stops_of
from .loading import read_config
from .names import LAYERS, places
from .names import Path as Parameter
from .state import CHUNK, bucket, empty, read_chunk

REFUSED, BAD_INPUT = 1, 2
ESCAPES = ("escapes", "counts", "special")  # arrays of window12 on TPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What the compiler says of a program.

    Attributes:
      tokens: of every sequence that it takes.
      temporary_bytes: beside weights, cache and results.
      peak_bytes: the most that the device holds while it runs, all counted.
      seconds: that compiling took.
      refused: the compiler's own words; "" where it took the program.
    """

    tokens: int
    temporary_bytes: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A model on a device.

    Attributes:
      weight_bytes: of all parameters; `escape_bytes` of them are lists of escapes.
      cache_bytes: of keys and values.
      programs: by name.
    """

    weight_bytes: int
    escape_bytes: int
    cache_bytes: int
    programs: Mapping[str, Program] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the compiler takes every program."""
        return not any(program.refused for program in self.programs.values())


def abstract_model(
    config: DecoderConfig,
    backend: str | None,
    formats: Mapping[Parameter, Format] | None = None,
) -> Decoder:
    """A model whose weights have shapes only, laid out as `load` does.

    Args:
      config: the architecture.
      backend: one of `layouts.BACKENDS`; None: dense bfloat16 weights.
      formats: of matrices that are not BF16, by path.

    Example:
      >>> from jentropy.models import RopeConfig
      >>> config = DecoderConfig(vocab_size=512, hidden_size=256, intermediate_size=512,
      ...     num_layers=3, num_heads=2, num_kv_heads=1, head_dim=128, rms_norm_eps=1e-6,
      ...     rope=RopeConfig(theta=1e4), tie_word_embeddings=True)
      >>> model = abstract_model(config, "tpu")
      >>> model.layers[0].mlp.up_proj.weight.get_value().layout
      'tpu_window12'
    """
    model = nnx.eval_shape(lambda: Decoder(config, compute_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))

    def laid_out(path: Parameter, shape: tuple[int, ...]) -> Any:
        own = shape[1:] if path[0] == LAYERS else shape
        dense = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        if backend is None or len(own) < 2:
            return dense
        number_format = (formats or {}).get(path, FORMATS["BF16"])
        if number_format.is_plain:
            return kernels.to_resident(dense, backend)
        return kernels.to_resident(abstract_weight(number_format, shape), backend)

    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    weights = {path: laid_out(path, one.get_value().shape) for path, one in parameters}
    nnx.update(model, nnx.from_flat_state(weights))
    return model


def measure(
    model: Decoder, target: str, *, batch: int = 1, context: int = 4096, chunk: int = CHUNK
) -> Footprint:
    """Compiles a model's programs.

    Args:
      model: as of `abstract_model`.
      target: a key of `TPUS`, whose compiler was prepared (`compiling.prepare`).
      batch: sequences.
      context: positions of the cache.
      chunk: tokens of a prompt that go through the model at once.
    """
    graph, weights = nnx.split(model)
    state = jax.eval_shape(lambda: empty(model, np.zeros(batch, np.uint32), bucket(context)))
    parts = jax.tree.leaves(weights, is_leaf=lambda node: isinstance(node, ResidentTensor))
    resident = [part for part in parts if isinstance(part, ResidentTensor)]
    chunk = min(chunk, context)
    numbers = np.zeros(batch, np.int32)

    def compiled(tokens: int, program: Any, *arguments: Any) -> Program:
        begin = time.perf_counter()
        try:
            with taken_for(target):
                given = compiling.placed(target, (weights, state, *arguments))
                done = program.lower(graph, *given).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            return Program(tokens=tokens, refused=str(error).partition("\n")[0])
        return Program(
            tokens=tokens,
            temporary_bytes=done.temp_size_in_bytes,
            peak_bytes=done.peak_memory_in_bytes,
            seconds=round(time.perf_counter() - begin, 1),
        )

    ids = np.zeros((batch, chunk), np.int32)
    told = numbers_of(GREEDY), stops_of(model, ()), np.int32(1)
    return Footprint(
        weight_bytes=_nbytes(weights),
        escape_bytes=_nbytes([[w.arrays.get(name) for name in ESCAPES] for w in resident]),
        cache_bytes=_nbytes(state.cache),
        programs={
            "prefill": compiled(chunk, read_chunk, ids, numbers, numbers),
            "decode": compiled(1, advance_in_place, *told),
        },
    )


def _nbytes(arrays: Any) -> int:
    return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(arrays))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    try:
        return _run(_parser().parse_args(argv))
    except JentropyError as error:
        print(f"footprint: {error}", file=sys.stderr)
        return BAD_INPUT


def _run(arguments: argparse.Namespace) -> int:
    compiling.prepare(arguments.tpu)
    versions = compiling.versions(arguments.tpu)
    config, formats = described(arguments.config)
    sizes = {name: getattr(arguments, name) for name in ("batch", "context", "chunk")}
    found = {}
    for name, backend in {"compressed": "tpu", "dense": None}.items():
        if name == "compressed" or arguments.dense:
            model = abstract_model(config, backend, formats)
            found[name] = measure(model, arguments.tpu, **sizes)
    if arguments.json:
        head = {"model": arguments.config.name, "target": arguments.tpu, **versions, **sizes}
        figures = {name: asdict(one) | {"fits": one.fits} for name, one in found.items()}
        text = json.dumps({**head, "escape_rate": ESCAPE_RATE, **figures}, indent=1)
        if arguments.json == "-":
            print(text)
        else:
            Path(arguments.json).write_text(text + "\n")
    if arguments.json != "-":
        words = ", ".join(f"{name} {version}" for name, version in versions.items())
        print(f"{arguments.tpu}, {words}; batch {arguments.batch}, {arguments.context} positions")
        for name, one in found.items():
            print("\n".join(_lines(name, one)))
    return 0 if found["compressed"].fits else REFUSED


def _lines(name: str, one: Footprint) -> Iterator[str]:
    escapes = f" (escapes {_gb(one.escape_bytes)}, {ESCAPE_RATE:.1e} of the weights)"
    cache = f"cache {_gb(one.cache_bytes)}"
    yield f"{name}: weights {_gb(one.weight_bytes)}{escapes if one.escape_bytes else ''}, {cache}"
    for kind, program in one.programs.items():
        yield f"  {kind}, {program.tokens} tokens: " + (
            f"the compiler refuses it: {program.refused}"
            if program.refused
            else f"temporaries {_gb(program.temporary_bytes)}, in all {_gb(program.peak_bytes)},"
            f" compiled in {program.seconds} s"
        )
    yield f"  {len(one.programs)} programs: {'fits' if one.fits else 'does not fit'}"


def _gb(n: int) -> str:
    return f"{n / 1e9:.3f} GB"


def described(path: Path) -> tuple[DecoderConfig, dict[Parameter, Format]]:
    """A model's config, and the formats of its matrices: BF16 where there are no weights."""
    folder = path.parent if path.name == CONFIG else path
    try:
        checkpoint = open_checkpoint(folder)
    except InputError:
        if not (file := folder / CONFIG).is_file():
            raise
        checkpoint = Checkpoint(folder, (), read_json(file, file.read_text()), ())
    architecture, config = read_config(checkpoint)
    model = abstract_model(config, None)
    shapes = {
        path: one.get_value().shape for path, one in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    named, _ = places(checkpoint.names(), architecture.names, shapes, model.members)
    formats: dict[Parameter, Format] = {}
    for name, parts in named.items():
        for part in parts:
            own = checkpoint.tensor(name).number_format
            if formats.setdefault(part.path, own) != own:
                raise UnsupportedError(
                    "weights of one stack",
                    tensor=name,
                    expected=formats[part.path].name,
                    found=own.name,
                )
    return config, formats


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jentropy.models.footprint",
        description="What a model takes of a TPU's memory, by its compiler; no TPU is needed.",
    )
    parser.add_argument(
        "config", type=Path, help="a config.json, its directory, or a compressed checkpoint"
    )
    parser.add_argument("--tpu", choices=list(TPUS), required=True, help="the TPU to compile for")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: %(default)s)")
    parser.add_argument("--context", type=int, default=4096, help="positions of the cache")
    parser.add_argument("--chunk", type=int, default=CHUNK, help="tokens of a step of prefill")
    parser.add_argument("--dense", action="store_true", help="say the same of dense BF16 weights")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- for stdout)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
