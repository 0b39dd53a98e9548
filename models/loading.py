"""Models from checkpoints: the architecture from the config, every weight to its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jentropy import formats
from jentropy.checkpoints import Checkpoint, CompressedCheckpoint, open_checkpoint
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import QuantizedTensor
from jentropy.pallas_kernels import default_backend
from jentropy.pallas_kernels.laying_out import lay_out

from .config import DecoderConfig
from .decoder import Decoder

_SHOWN = 4  # failures named in a message
PREFIX = "model."  # of every key but the output projection's
# Keys that other tools write beside the weights; the model derives what they hold.
_DERIVED = ("rotary_emb.inv_freq",)


def read_config(
    checkpoint: Checkpoint, architectures: Mapping[str, Callable[..., DecoderConfig]]
) -> DecoderConfig:
    """The architecture of a checkpoint.

    Raises:
      UnsupportedError: an architecture that is not in `architectures`.
    """
    config = checkpoint.config
    if config is None:
        raise InputError("no config.json", file=checkpoint.source, hint="a model needs one")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else config.get("model_type")
    if not isinstance(name, str) or name not in architectures:
        raise UnsupportedError(
            "architecture",
            file=checkpoint.source,
            expected=" or ".join(architectures),
            found=repr(name),
        )
    try:
        return architectures[name](config)
    except InputError as error:
        raise error.at(file=checkpoint.source) from error


def load_model(
    path: str | Path,
    architectures: Mapping[str, Callable[..., DecoderConfig]],
    *,
    mesh: jax.sharding.Mesh | None = None,
    compute_dtype: Any = None,
) -> Decoder:
    """See `jentropy.models.load`."""
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint, architectures)
    if compute_dtype is None:
        formats_used = {checkpoint.tensor(name).format for name in checkpoint.names()}
        compute_dtype = jnp.bfloat16 if "BF16" in formats_used else jnp.float32
    model = nnx.eval_shape(lambda: Decoder(config, compute_dtype=compute_dtype, rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    places = {parameter_name(key): variable for key, variable in nnx.to_flat_state(state)}
    _check(checkpoint, config, places)
    compressed = isinstance(checkpoint, CompressedCheckpoint)
    # XLA does not split a kernel over a mesh; it does what the reference backend is made of.
    backend = default_backend() if mesh is None else "reference"
    for tensor, codes in checkpoint.read_all():
        if tensor.name not in places:  # one that `_check` let pass
            continue
        if compressed:
            held = QuantizedTensor(number_format=tensor.number_format, codes=dict(codes))
            weight = lay_out(held, backend)
        elif tensor.dtype is not None:
            weight = jnp.asarray(tensor.values(codes))
        else:
            weight = jnp.asarray(tensor.dequantize(compute_dtype, codes))
        places[tensor.name].set_value(weight if mesh is None else _spread(weight, mesh))
    nnx.update(model, state)
    return model


def parameter_name(path: tuple) -> str:
    """Checkpoint key of a parameter's path in the module."""
    name = ".".join(map(str, path))
    return name if name.startswith("lm_head.") else PREFIX + name


def _check(
    checkpoint: Checkpoint, config: DecoderConfig, places: Mapping[str, nnx.Variable]
) -> None:
    """Collects everything that does not fit before it complains."""
    present = set(checkpoint.names())
    # Quantised weights that nothing explains: what lies in a module may be the one that is missing.
    unread = {n: t.note for n in checkpoint.names() if (t := checkpoint.tensor(n)).note}
    modules = {name.rpartition(".")[0]: name for name in unread}
    failures = []
    for name in places.keys() - present:
        found = modules.get(name.rpartition(".")[0])
        why = f": {found} is kept as RAW codes ({unread[found]})" if found else ""
        failures.append(f"missing {name}{why}")
    failures.sort()
    for name in sorted(present - places.keys() - unread.keys()):
        tied = config.tie_word_embeddings and name == "lm_head.weight"
        if not (tied or checkpoint.tensor(name).auxiliary or name.endswith(_DERIVED)):
            failures.append(f"unexpected {name}")
    for name, variable in places.items():
        if name not in present:
            continue
        tensor = checkpoint.tensor(name)
        wanted = tuple(variable.get_value().shape)
        if tensor.format == formats.RAW:
            why = tensor.note or f"dtype {tensor.dtype}, which no format describes"
            failures.append(f"{name} is kept as RAW codes ({why})")
        elif tensor.shape != wanted:
            failures.append(f"{name} has shape {list(tensor.shape)} instead of {list(wanted)}")
    if failures:
        more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        raise InputError(
            f"weights do not fit the architecture: {'; '.join(failures[:_SHOWN])}{more}",
            file=checkpoint.source,
        )


def _spread(weight: Any, mesh: jax.sharding.Mesh) -> Any:
    """Arrays split by their first axis over the whole mesh where it divides them, else copied."""
    axes = tuple(mesh.axis_names)

    def place(array: jax.Array) -> jax.Array:
        divides = array.ndim > 1 and array.shape[0] % mesh.size == 0
        spec = jax.sharding.PartitionSpec(axes if divides else None)
        return jax.device_put(
            array,
            jax.sharding.NamedSharding(mesh, spec if array.ndim else jax.sharding.PartitionSpec()),
        )

    return jax.tree.map(place, weight)
