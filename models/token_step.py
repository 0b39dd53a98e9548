"""`python -m jentropy.models.token_step CONFIG --tpu v5e`: what bounds a decode step on a TPU.

Every product of one step of generation is compiled for the TPU that is named. Its schedule, waits
for the MXU included, and the cycles in which memory moves its weight run beside each other: the
longer of the two is what it takes at the least. The sum over all products bounds the tokens a
second of one chip (of v7x, one core) that holds the model. Attention, caches and the embedding are
not in it. Of experts, those count that so many tokens are expected to choose, each read once by the
kernel for all of a layer.

CONFIG is as of `jentropy.models.footprint`; `--layers` and `--experts` name the formats of matrices
where there are no weights to tell. Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flax import nnx

from jentropy import pallas_kernels as kernels
from jentropy.errors import JentropyError, UnsupportedError
from jentropy.formats import FORMATS, Format
from jentropy.pallas_kernels import ResidentTensor, abstract_weight
from jentropy.pallas_kernels.backends import has_kernels
from jentropy.pallas_kernels.fused import kernels_of
from jentropy.pallas_kernels.profiling import compiling, tpu, tpu_grouped
from jentropy.pallas_kernels.profiling.tpu_grouped import Layer
from jentropy.pallas_kernels.targets import TPUS
from jentropy.pallas_kernels.tiles import ceil_to
from jentropy.pallas_kernels.tpu.plan import ROWS

from .config import DecoderConfig
from .footprint import BAD_INPUT, abstract_model, described
from .names import LAYERS
from .names import Path as Parameter

BATCHES = (1, 16)
EXPERTS, ROUTER, EMBEDDING, HEAD = "experts", "gate", "embed_tokens", "lm_head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Products of a step that are alike.

    Attributes:
      number_format: of the weight.
      k, n: of it.
      count: how many there are in a step.
      rows: of x in each.
      experts: the layer of which it is the matrix of one.
      tokens: that choose among those.
    """

    number_format: Format
    k: int
    n: int
    count: float
    rows: int
    experts: Layer | None = None
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A decode step on a TPU, in cycles.

    Attributes:
      batch: sequences.
      weight_bytes: that it reads.
      bundles: of all products.
      with_waits: the same with bundles in which the MXU is waited for.
      memory: in which memory moves all weights once.
      bound: the longer of the two, product by product.
      tokens_per_second: at the most.
    """

    batch: int
    weight_bytes: float
    bundles: float
    with_waits: float
    memory: float
    bound: float
    tokens_per_second: float


def products(
    config: DecoderConfig, formats: Mapping[Parameter, Format], batch: int
) -> Iterator[Used]:
    """Matrices that a step of so many sequences multiplies by.

    Example:
      >>> from jentropy.models import RopeConfig
      >>> config = DecoderConfig(vocab_size=512, hidden_size=256, intermediate_size=512,
      ...     num_layers=3, num_heads=2, num_kv_heads=1, head_dim=128, rms_norm_eps=1e-6,
      ...     rope=RopeConfig(theta=1e4), tie_word_embeddings=True)
      >>> sorted({(used.k, used.n) for used in products(config, {}, 1)})
      [(256, 128), (256, 256), (256, 512), (512, 256)]
    """
    parameters = dict(nnx.to_flat_state(nnx.state(abstract_model(config, None), nnx.Param)))
    tied = not any(path[0] == HEAD for path in parameters)
    for path, one in parameters.items():
        shape = one.get_value().shape
        stack: tuple[int, ...] = shape[:-2] if path[0] == LAYERS else ()
        is_matrix = path[-1] == "weight" and len(shape) >= (3 if path[0] == LAYERS else 2)
        if not is_matrix or (path[0] == EMBEDDING and not tied):
            continue
        count, rows, layer = float(math.prod(stack[:1])), batch, None
        if EXPERTS in path:
            assert config.experts is not None
            chosen = config.experts.per_token
            layer = Layer(k=shape[-1], n=shape[-2], groups=stack[-1], chosen=chosen)
            active = layer.active(batch)
            count, rows = count * active, math.ceil(batch * chosen / active)
        yield Used(
            number_format=formats.get(path, FORMATS["BF16"]),
            k=shape[-1],
            n=shape[-2],
            count=count,
            rows=rows,
            experts=layer,
            tokens=batch,
        )


def chosen(
    config: DecoderConfig,
    formats: Mapping[Parameter, Format],
    layers: str | None,
    experts: str | None,
) -> dict[Parameter, Format]:
    """Formats of matrices, those of layers and of experts by name where names are given."""
    made = dict(formats)
    for path, _ in nnx.to_flat_state(nnx.state(abstract_model(config, None), nnx.Param)):
        name = experts if EXPERTS in path else layers
        if path[0] == LAYERS and path[-1] == "weight" and ROUTER not in path and name:
            made[path] = FORMATS[name]
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one product, in cycles; see `Step`."""

    weight_bytes: float
    bundles: float
    with_waits: float
    memory: float


def cost(dump: Path, target: str, used: Used) -> Cost:
    """Of a product from compressed weights."""
    if not has_kernels("tpu", used.number_format):
        raise UnsupportedError(
            "kernels for TPU", expected="of each format", found=used.number_format.name
        )
    laid_out = kernels.to_resident(abstract_weight(used.number_format, (used.n, used.k)), "tpu")
    if not isinstance(laid_out, ResidentTensor):  # it is too small to gain
        return dense_cost(dump, target, used)
    if used.experts is not None:
        return _expert_cost(dump, target, used.number_format, used.experts, used.tokens)
    weight = tpu.resident(used.number_format, used.k, used.n, target)
    plan = kernels_of(weight).plan(weight, used.rows, TPUS[target])
    steps: float = math.prod(plan.grid)
    # A kernel of one step has no loop to read: it is taken as part of a large one.
    shape = (used.k, used.n) if steps > 1 else tpu.SHAPE
    one = _compressed(dump, target, used.number_format, plan.m, shape)
    if steps == 1:
        steps = one.share * plan.k * plan.n / tpu.UNIT
    return Cost(
        weight_bytes=weight.nbytes,
        bundles=steps * one.schedule.bundles,
        with_waits=steps * one.schedule.cycles,
        memory=TPUS[target].hbm_cycles(weight.nbytes),
    )


@functools.cache
def _expert_cost(dump: Path, target: str, number_format: Format, layer: Layer, tokens: int) -> Cost:
    """Of an expert that some of the tokens choose, as one of its layer's."""
    weight, plan, _ = tpu_grouped.product_of(number_format, layer, tokens, target)
    one = tpu_grouped.measure(dump, target, number_format, layer, tokens)
    rows = tokens * layer.chosen / layer.active(tokens)
    windows = 1 + (rows - 1) / plan.tile.m  # they begin anywhere among registers
    visits = windows * plan.tile.grid[0] * plan.steps / plan.depth
    size = weight.nbytes / layer.groups
    return Cost(
        weight_bytes=size,
        bundles=visits * one.schedule.bundles,
        with_waits=visits * one.schedule.cycles,
        memory=TPUS[target].hbm_cycles(size),
    )


@functools.cache
def _compressed(
    dump: Path, target: str, number_format: Format, rows: int, shape: tuple[int, int]
) -> tpu.Figures:
    return tpu.measure(dump, target, number_format, rows, shape)


@functools.cache
def _dense(dump: Path, target: str, rows: int) -> tpu.Figures:
    return tpu.measure_dense(dump, target, rows)


def dense_cost(dump: Path, target: str, used: Used) -> Cost:
    """Of the product with a dense BF16 weight, as part of a large one."""
    one = _dense(dump, target, ceil_to(used.rows, ROWS))
    weights = used.k * used.n
    part = one.share * weights / tpu.UNIT
    return Cost(
        weight_bytes=2.0 * weights,
        bundles=part * one.schedule.bundles,
        with_waits=part * one.schedule.cycles,
        memory=TPUS[target].hbm_cycles(2 * weights),
    )


def step(target: str, batch: int, costs: Sequence[tuple[Used, Cost]]) -> Step:
    """The sum over a step's products.

    Example:
      >>> used = Used(number_format=FORMATS["BF16"], k=128, n=128, count=2, rows=1)
      >>> one = Cost(weight_bytes=24576, bundles=30, with_waits=60, memory=45)
      >>> step("v5e", 1, [(used, one)]).bound
      120
    """

    def total(value: Callable[[Cost], float]) -> float:
        return sum(used.count * value(one) for used, one in costs)

    bound = total(lambda one: max(one.with_waits, one.memory))
    return Step(
        batch=batch,
        weight_bytes=total(lambda one: one.weight_bytes),
        bundles=total(lambda one: one.bundles),
        with_waits=total(lambda one: one.with_waits),
        memory=total(lambda one: one.memory),
        bound=bound,
        tokens_per_second=batch * TPUS[target].clock_hz / bound,
    )


def measured(
    dump: Path, target: str, config: DecoderConfig, formats: Mapping[Parameter, Format]
) -> dict[str, list[Step]]:
    """Steps of BATCHES from compressed and from dense weights."""
    steps: dict[str, list[Step]] = {"compressed": [], "dense": []}
    for batch in BATCHES:
        alike = list(products(config, formats, batch))
        for name, price in {"compressed": cost, "dense": dense_cost}.items():
            costs = [(used, price(dump, target, used)) for used in alike]
            steps[name].append(step(target, batch, costs))
    return steps


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    try:
        return _run(_parser().parse_args(argv))
    except JentropyError as error:
        print(f"token_step: {error}", file=sys.stderr)
        return BAD_INPUT


def _run(arguments: argparse.Namespace) -> int:
    target = arguments.tpu
    config, formats = described(arguments.config)
    formats = chosen(config, formats, arguments.layers, arguments.experts)
    with tempfile.TemporaryDirectory(prefix="step-") as folder:
        compiling.prepare(target, Path(folder))
        versions = compiling.versions(target)
        steps = measured(Path(folder), target, config, formats)
    head = {"model": arguments.config.name, "target": target, **versions}
    head |= {"layers": arguments.layers, "experts": arguments.experts}
    if arguments.json:
        figures = {name: [asdict(one) for one in made] for name, made in steps.items()}
        text = json.dumps(head | figures, indent=1)
        if arguments.json == "-":
            print(text)
            return 0
        Path(arguments.json).write_text(text + "\n")
    print(", ".join(f"{name} {version}" for name, version in versions.items()), "on", target)
    print("\n".join(table(steps)))
    return 0


def table(steps: Mapping[str, Sequence[Step]]) -> Iterator[str]:
    """Rows of a table in Markdown."""
    yield "| weights | batch | GB read | bundles / memory | with waits | ms | tokens/s, at most |"
    yield "|---|---|---|---|---|---|---|"
    for name, made in steps.items():
        for one in made:
            yield (
                f"| {name} | {one.batch} | {one.weight_bytes / 1e9:.2f} | "
                f"{one.bundles / one.memory:.2f} | {one.with_waits / one.memory:.2f} | "
                f"{1e3 * one.batch / one.tokens_per_second:.2f} | {one.tokens_per_second:.0f} |"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jentropy.models.token_step",
        description="What bounds a step of generation on a TPU, by its compiler; none is needed.",
    )
    parser.add_argument(
        "config", type=Path, help="a config.json, its directory, or a compressed checkpoint"
    )
    parser.add_argument("--tpu", choices=list(TPUS), required=True, help="the TPU to compile for")
    formats = sorted(name for name, one in FORMATS.items() if has_kernels("tpu", one))
    for what in ("layers", "experts"):
        parser.add_argument(f"--{what}", choices=formats, help=f"format of matrices of {what}")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- for stdout)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
