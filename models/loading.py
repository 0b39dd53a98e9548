"""Models from checkpoints: the architecture from the config, every weight to its place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jentropy import formats, modes
from jentropy import pallas_kernels as kernels
from jentropy.checkpoints import Checkpoint, CompressedCheckpoint, Tensor, open_checkpoint
from jentropy.checkpoints.bases import Bases
from jentropy.checkpoints.contents import CONFIG, read_json
from jentropy.checkpoints.progress import Progress, expect
from jentropy.errors import InputError, UnsupportedError
from jentropy.pallas_kernels.matrices import on_device

from .architectures import ARCHITECTURES, OTHER_NAMES
from .config import Architecture, DecoderConfig
from .declared import refuse_online
from .decoder import Decoder
from .keys import Keys, known, refuse_unread
from .names import LAYERS, Place, left_out, places
from .sharding import Rules, Sharding
from .spreading import Filling, OnOneDevice, OverMesh
from .stored import FACTORS, StoredWeights

_MOST_READINGS = 4  # of a checkpoint, over a mesh
_SHOWN = 4  # failures named in a message
_HEAD = "lm_head.weight"
_ADAPTER = "adapter_config.json"  # whose weights other loaders would add to the model's
_GENERATED = ("eos_token_id", "pad_token_id")  # what `generation_config.json` may tell
# Keys that other tools write beside the weights; the model derives what they hold.
_DERIVED = ("rotary_emb.inv_freq",)


def read_config(checkpoint: Checkpoint) -> tuple[Architecture, DecoderConfig]:
    """The architecture of a checkpoint, and what its config says of it.

    Raises:
      UnsupportedError: an architecture that is not in `ARCHITECTURES`, or a config that says of
        it what it does not know.
    """
    config = checkpoint.config
    if config is None:
        raise InputError("no config.json", file=checkpoint.source, hint="a model needs one")
    text = checkpoint.read_text(CONFIG)
    content = config if text is None else read_json(checkpoint.source / CONFIG, text)
    keys = Keys({**content, **{key: config.get(key) for key in _GENERATED}})
    try:
        name = _name(config)
        if not _same_code(keys.get("auto_map") or {}, ARCHITECTURES[name].own_code):
            raise UnsupportedError(
                "config.json: auto_map",
                expected="no model of its own code",
                found=repr(config["auto_map"]),
                hint=f"if {name} computes the same, take the key out of the config",
            )
        if checkpoint.read_text(_ADAPTER) is not None:
            raise UnsupportedError(
                _ADAPTER,
                expected="a model without an adapter",
                found="one",
                hint="merge it into the weights; if it is no part of them, remove the file",
            )
        made = ARCHITECTURES[name].config(keys)
        refuse_unread(content, keys.read, known("config"), f"config.json of {name}")
        refuse_online(checkpoint, content)
    except InputError as error:
        raise error.at(file=checkpoint.source) from error
    return ARCHITECTURES[name], made


def placed(
    architecture: Architecture,
    config: DecoderConfig,
    tensors: Mapping[str, Tensor],
    compute_dtype: Any,
    weights: Mapping[int, Hashable],
) -> tuple[Decoder, Mapping[str, list[Place]], list[str]]:
    """A model without data, where its weights go, and what no weight is for.

    Args:
      weights: see `Decoder`.
    """
    naming = (*left_out(config.num_layers, config.extra_layers), *architecture.names)
    model = nnx.eval_shape(
        lambda: Decoder(config, compute_dtype=compute_dtype, rngs=nnx.Rngs(0), weights=weights)
    )
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    shapes = {path: tuple(variable.get_value().shape) for path, variable in parameters}
    return model, *places(tensors, naming, shapes, model.members)


def _name(config: Mapping[str, Any]) -> str:
    """The key in `ARCHITECTURES` of what a config names as its class and its type of model."""
    classes, kind = config.get("architectures"), config.get("model_type")
    told = classes[0] if isinstance(classes, list) and classes else classes or kind
    name = OTHER_NAMES.get(told, told) if isinstance(told, str) else ""
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            "architecture",
            expected=f"one of {len(ARCHITECTURES)}, as LlamaForCausalLM",
            found=f"{told!r:.60}",
            hint="jentropy.models.ARCHITECTURES has all, CONTRIBUTING.md how to add one",
        )
    if kind is not None and OTHER_NAMES.get(str(kind)) != name:
        raise UnsupportedError(
            f"model_type of {name}",
            expected=" or ".join(ARCHITECTURES[name].other_names),
            found=f"{kind!r:.60}",
        )
    return name


def _same_code(auto_map: Any, known: Sequence[str]) -> bool:
    """Whether all models that a config takes from code of its own are known to compute the same."""
    items = auto_map.items() if isinstance(auto_map, Mapping) else [("AutoModel", auto_map)]
    return all(
        isinstance(value, str) and value.rpartition(".")[2] in known
        for key, value in items
        if key.startswith("AutoModel")
    )


@modes.detached
def load(
    path: str | Path,
    mesh: Mesh | None = None,
    compute_dtype: Any = None,
    *,
    rules: Rules = (),
    dense: bool = False,
    progress: Progress | None = None,
    base: Bases = None,
) -> Decoder:
    """Loads a model.

    From a compressed checkpoint, matrices stay compressed on the device and every layer multiplies
    from the compressed bytes. From a Hugging Face directory, quantised matrices stay as they are
    stored, and numbers (BF16, FP16, FP32) are plain arrays. The logits of the two are the same bits
    on the reference backend. Where the device has no kernel for a format, its matrices are decoded
    for every product, which takes less memory and more time than dense ones.

    Layers lie in stacks, which are filled in place as weights are read, so that no stack is held
    twice. Layers of one stack share a compiled program. Those whose weights are in other formats,
    or came to lie in another layout, have a stack of their own; lists of escapes are filled up to
    the longest of a stack. Layouts that depend on numbers are known late: if they differ where
    formats do not, the checkpoint is read twice.

    Weights are all that is read as quantised: activations and the cache are not, whatever the
    config declares of them. A key of the config that is neither read nor known to change nothing
    (`models/known_keys.toml`) is refused, and so are rotations, transforms and adapters.

    Args:
      path: a directory in Hugging Face form, its safetensors file, a compressed checkpoint made of
        one, or `hf://owner/name`.
      mesh: of `jax.make_mesh`, with Auto or Explicit axes: splits the weights over its devices, of
        one process or of all that `jax.distributed` joins. Each has, and a process reads, its part
        only, and multiplies by the kernels of its backend. On CPU logits are the bits of one
        device.
      rules: of the mesh, (axis of weights, axis or axes of the mesh or None), before those that
        `models.sharding` gives: axes of the mesh called "data" split sequences, all others split
        weights. `[("residual", None)]` sums over what devices have, with half of the messages and
        other bits.
      compute_dtype: of activations, bfloat16 or float32; None takes bfloat16 for BF16 weights and
        float32 for any other. Accumulation is float32.
      dense: whether all weights become plain arrays, quantised ones rounded to `compute_dtype`.
      progress: called with the weights read since the last call; see `checkpoints.progress`.
      base: of a compressed checkpoint that is told by another, see `jentropy.load`.

    Returns:
      An `nnx.Module`: `model(input_ids)` maps int32[batch, time] to float32[batch, time,
      vocabulary].

    Raises:
      InputError: an unknown architecture, a config that says what it does not know, or weights
        that do not fit it, all of them named.

    Example:
      >>> from jentropy import models
      >>> model = models.load(models.BUNDLED)
      >>> model.config.num_layers, model.layers[0].mlp.up_proj.weight.shape
      (5, (5, 512, 192))
    """
    checkpoint = open_checkpoint(path, base=base)
    architecture, config = read_config(checkpoint)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    if compute_dtype is None:
        is_bf16 = any(tensor.format == "BF16" for tensor in tensors.values())
        compute_dtype = jnp.bfloat16 if is_bf16 else jnp.float32
    if jnp.dtype(compute_dtype) not in (jnp.bfloat16, jnp.float32):
        raise InputError("compute_dtype", expected="bfloat16 or float32", found=compute_dtype)
    sharding = mesh and Sharding(mesh=mesh, rules=rules, kv_heads=config.num_kv_heads)
    # Those of every weight in turn: parts over a mesh that came to lie differently take the next.
    backends = {name: kernels.default_backend(t.number_format) for name, t in tensors.items()}
    layouts = {name: [own, *({"reference"} - {own}), ""] for name, own in backends.items()}

    compressed, stored = isinstance(checkpoint, CompressedCheckpoint), StoredWeights(checkpoint)

    def make(tensor: Tensor, codes: Any, place: Place) -> Any:
        weight = stored.of(tensor, codes)
        is_plain = weight.number_format.is_plain
        if is_plain and (dense or not compressed):
            return place.of_array(tensor.values(codes))
        part = place.of_quantized(weight)
        return part.dequantize(compute_dtype) if dense else part

    def lay(tensor: Tensor, weight: Any) -> Any:
        if not isinstance(weight, formats.QuantizedTensor):
            return on_device(weight)
        layout = layouts[tensor.name][0]
        laid = kernels.to_resident(weight, layout or "reference")
        return laid if layout else kernels.decode(laid)

    build = partial(placed, architecture, config, tensors, compute_dtype)
    model, named, missing = build({})
    _check(checkpoint, config, tensors, named, missing, stored)
    alike: dict[str, Hashable] = {name: t.number_format for name, t in tensors.items()}
    for _ in range(2 if mesh is None else _MOST_READINGS):
        weights = defaultdict(set)  # what those of every layer share with others of its stack
        for name, parts in named.items():
            for place in parts:
                if place.path[0] == LAYERS:
                    layer = model.members[place.path[1]][place.index[0]]
                    weights[layer].add((place.path[2:], place.index[1:], alike[name]))
        shared = {layer: frozenset(alikes) for layer, alikes in weights.items()}
        if any(len({shared.get(n) for n in members}) > 1 for members in model.members):
            model, named, _ = build(shared)
        filling = OverMesh(sharding) if sharding else OnOneDevice()
        _fill(checkpoint, named, make, lay, filling, progress)
        likes, unlike, done = filling.alike()
        if done:
            nnx.update(model, nnx.from_flat_state(filling.whole()))
            return model
        alike = {name: (tensors[name].number_format, like) for name, like in likes.items()}
        for name in unlike:
            layouts[name] = layouts[name][1:] or [""]
    raise UnsupportedError(
        "experts of a layer", file=checkpoint.source, expected="one layout", found="several"
    )


def _fill(
    checkpoint: Checkpoint,
    named: Mapping[str, Sequence[Place]],
    make: Callable[[Tensor, Any, Place], Any],
    lay: Callable[[Tensor, Any], Any],
    filling: Filling,
    progress: Progress | None,
) -> None:
    """Reads all weights to their places.

    Args:
      make: (tensor, its codes, place) -> what of it goes there, as it is stored.
      lay: (tensor, that or a piece of it) -> the same in its layout.
    """
    parts: dict[str, tuple[slice, ...] | None] = {}
    for name in checkpoint.names():
        match named.get(name, ()):
            case [place]:
                parts[name] = filling.wanted(checkpoint.tensor(name), place)
            case places:
                parts[name] = () if places else None
    read = [name for name, part in parts.items() if part is not None]
    expect(progress, sum(math.prod(checkpoint.tensor(name).shape) for name in read))
    for tensor, codes in checkpoint.read_all(parts):
        if progress:
            progress(math.prod(tensor.shape))
        for place in named[tensor.name]:
            pieces = filling.pieces(tensor.name, place, make(tensor, codes, place))
            laid = {number: lay(tensor, weight) for number, weight in pieces.weights.items()}
            filling.add(tensor.name, place.path, pieces, laid)


def _check(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    tensors: Mapping[str, Tensor],
    named: Mapping[str, Sequence[Place]],
    missing: Sequence[str],
    stored: StoredWeights,
) -> None:
    """Collects everything that does not fit before it complains."""
    # Quantised weights that nothing explains: what lies in a module may be the one that is missing.
    unread = {name: tensor.note for name, tensor in tensors.items() if tensor.note}
    modules = {name.rpartition(".")[0]: name for name in unread}
    failures = []
    for name in sorted(missing):
        raw = modules.get(name.rpartition(".")[0])
        why = f": {raw} is kept as RAW codes ({unread[raw]})" if raw else ""
        failures.append(f"missing {name}{why}")
    for name in sorted(tensors.keys() - named.keys() - unread.keys()):
        tied = config.tie_word_embeddings and name.endswith(_HEAD)
        if name.endswith(FACTORS) and not stored.has(name):
            failures.append(f"{name} scales the input of a layer that is not there")
        elif not (
            stored.has(name) or tied or name.endswith(_DERIVED) or _adds_nothing(tensors[name])
        ):
            failures.append(f"unexpected {name}")
    for name, place in ((name, parts[0]) for name, parts in named.items() if parts):
        tensor = tensors[name]
        if tensor.format == formats.RAW:
            why = tensor.note or f"dtype {tensor.dtype}, which no format describes"
            failures.append(f"{name} is kept as RAW codes ({why})")
        elif tensor.shape != place.shape:
            shapes = f"{list(tensor.shape)} instead of {list(place.shape)}"
            failures.append(f"{name} has shape {shapes}")
    if failures:
        hint = checkpoint.notes[0] if checkpoint.notes else None
        if _HEAD in missing:
            hint = "logits need an output projection, or tie_word_embeddings in config.json"
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
