"""Models from checkpoints: the architecture from the config, every weight to its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jentropy import formats, modes
from jentropy.checkpoints import Checkpoint, CompressedCheckpoint, Tensor, open_checkpoint
from jentropy.checkpoints.contents import CONFIG, read_json
from jentropy.checkpoints.progress import Progress, expect
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import QuantizedTensor
from jentropy.pallas_kernels import default_backend
from jentropy.pallas_kernels.laying_out import lay_out

from .config import DecoderConfig
from .declared import refuse_online
from .decoder import Decoder
from .harmless import HARMLESS
from .keys import Keys, refuse_unread

_SHOWN = 4  # failures named in a message
PREFIX = "model."  # of every key but the output projection's; models without one may lack it
_HEAD, _TABLE = "lm_head.", "embed_tokens."
_ADAPTER = "adapter_config.json"  # whose weights other loaders would add to the model's
_GENERATED = ("eos_token_id", "pad_token_id")  # what `generation_config.json` may tell
# Keys that other tools write beside the weights; the model derives what they hold.
_DERIVED = ("rotary_emb.inv_freq",)
# Factors of a layer's input, which its product from the weight alone would lack.
_FACTORS = ("act_pre_scale", "pre_quant_scale")


def read_config(
    checkpoint: Checkpoint,
    architectures: Mapping[str, Callable[..., DecoderConfig]],
    other_names: Mapping[str, str],
) -> DecoderConfig:
    """The architecture of a checkpoint.

    Args:
      other_names: architectures by `model_type`, and by classes without an output projection.

    Raises:
      UnsupportedError: an architecture that is not in `architectures`, or a config that says of
        it what it does not know.
    """
    config = checkpoint.config
    if config is None:
        raise InputError("no config.json", file=checkpoint.source, hint="a model needs one")
    classes, kind = config.get("architectures"), config.get("model_type")
    told = classes[0] if isinstance(classes, list) and classes else classes or kind
    name = other_names.get(told, told) if isinstance(told, str) else ""
    if name not in architectures:
        raise UnsupportedError(
            "architecture",
            file=checkpoint.source,
            expected=" or ".join(architectures),
            found=repr(told),
        )
    if kind is not None and other_names.get(str(kind)) != name:
        raise UnsupportedError(
            "config.json: model_type",
            file=checkpoint.source,
            expected=f"that of {name}",
            found=repr(kind),
        )
    text = checkpoint.read_text(CONFIG)
    own = config if text is None else read_json(checkpoint.source / CONFIG, text)
    if checkpoint.read_text(_ADAPTER) is not None:
        raise UnsupportedError(
            _ADAPTER,
            file=checkpoint.source,
            expected="a model without an adapter",
            found="one",
            hint="merge it into the weights; if it is no part of them, remove the file",
        )
    keys = Keys({**own, **{key: config.get(key) for key in _GENERATED}})
    if any(key.startswith("AutoModel") for key in keys.get("auto_map") or ()):
        raise UnsupportedError(
            "config.json: auto_map",
            file=checkpoint.source,
            expected="no model of its own code",
            found=repr(config["auto_map"]),
            hint=f"if {name} computes the same, take the key out of the config",
        )
    try:
        made = architectures[name](keys)
        refuse_unread(own, keys.read, HARMLESS, f"config.json of {name}")
    except InputError as error:
        raise error.at(file=checkpoint.source) from error
    refuse_online(checkpoint, own)
    return made


@modes.detached
def load_model(
    path: str | Path,
    architectures: Mapping[str, Callable[..., DecoderConfig]],
    other_names: Mapping[str, str],
    *,
    mesh: jax.sharding.Mesh | None = None,
    compute_dtype: Any = None,
    progress: Progress | None = None,
) -> Decoder:
    """See `jentropy.models.load`."""
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint, architectures, other_names)
    if compute_dtype is None:
        formats_used = {checkpoint.tensor(name).format for name in checkpoint.names()}
        compute_dtype = jnp.bfloat16 if "BF16" in formats_used else jnp.float32
    model = nnx.eval_shape(lambda: Decoder(config, compute_dtype=compute_dtype, rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    is_flat = any(name.startswith(_TABLE) for name in checkpoint.names())
    prefix = "" if is_flat else PREFIX
    places = {parameter_name(key, prefix): value for key, value in nnx.to_flat_state(state)}
    _check(checkpoint, config, places)
    compressed = isinstance(checkpoint, CompressedCheckpoint)
    # XLA does not split a kernel over a mesh; it does what the reference backend is made of.
    backend = default_backend() if mesh is None else "reference"
    expect(progress, sum(math.prod(checkpoint.tensor(n).shape) for n in checkpoint.names()))
    for tensor, codes in checkpoint.read_all():
        if progress:
            progress(math.prod(tensor.shape))
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


def parameter_name(path: tuple, prefix: str = PREFIX) -> str:
    """Checkpoint key of a parameter's path in the module."""
    name = ".".join(map(str, path))
    return name if name.startswith(_HEAD) else prefix + name


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
    hint = checkpoint.notes[0] if checkpoint.notes else None
    if any(name not in present and name.startswith(_HEAD) for name in places):
        hint = "logits need an output projection, or tie_word_embeddings in config.json"
    for name in sorted(present - places.keys() - unread.keys()):
        tied = config.tie_word_embeddings and name == f"{_HEAD}weight"
        if name.endswith(_FACTORS):
            failures.append(f"{name} scales the input of its layer, which this model does not do")
        elif not (tied or name.endswith(_DERIVED) or _adds_nothing(checkpoint.tensor(name))):
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
            hint=hint,
        )


def _adds_nothing(tensor: Tensor) -> bool:
    """Whether products are the same without it: scales of activations, and zero points of 0."""
    return tensor.auxiliary or (
        tensor.name.endswith("zero_point") and not tensor.codes["code"].any()
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
