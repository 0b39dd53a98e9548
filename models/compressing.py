"""Flax modules of your own, with matrices that rest compressed where dense ones were."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx

from jentropy import pallas_kernels as kernels
from jentropy.containers.trees import leaf_name
from jentropy.errors import InputError
from jentropy.formats import Format
from jentropy.pallas_kernels import ResidentArray

from .compressed_layers import LAYERS, Layer

LEAST = 1 << 12  # numbers of a matrix: decoding a smaller one saves nothing that shows

M = TypeVar("M", bound=nnx.Module)


class Compressed(nnx.Variable):
    """A `ResidentArray` that stands where a `nnx.Param` stood.

    It is no `nnx.Param`: optimisers and `nnx.grad` leave it alone. Transforms that name the types
    of what they split name it too: `nnx.StateAxes({(nnx.Param, Compressed): 0, ...: None})`.

    Example:
      >>> layer = nnx.Linear(64, 256, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
      >>> type(compress_module(layer).kernel).__name__, layer.kernel.shape, layer.kernel.dtype.name
      ('Compressed', (64, 256), 'bfloat16')
    """

    def get_value(self, *, index: Any = ...) -> Any:
        """The array, not decoded; of an index, that part of the decoded one."""
        value = self.get_raw_value()
        if index is ...:
            return value
        return (value.__jax_array__() if isinstance(value, ResidentArray) else value)[index]


def matrices(path: tuple[Any, ...], value: Any) -> bool:
    """The default filter: parameters of at least `LEAST` numbers, but for those of LoRA.

    Args:
      path: of the variable in its module.
      value: the variable.

    Example:
      >>> matrices(("kernel",), nnx.Param(jnp.ones((64, 64))))
      True
    """
    is_param = isinstance(value, nnx.Param) and not isinstance(value, nnx.LoRAParam)
    return is_param and math.prod(value.shape) >= LEAST


def compress_module(
    module: M,
    filter: Any = matrices,
    *,
    number_format: Format | None = None,
    backend: str | None = None,
) -> M:
    """Lets the matrices of a Flax NNX module rest compressed; it is called as before.

    Matrices are kernels and tables of `nnx.Linear`, `LinearGeneral`, `Einsum` and `Embed`, and of
    classes made of them, anywhere in the module: projections of `nnx.MultiHeadAttention`, bases of
    `nnx.LoRA`, layers that `nnx.vmap` has stacked along the first axis. The layer says which axes
    are the matrix: a kernel [in, heads, head_dim] is one matrix, [layers, in, out] a stack of them.

    On the reference backend, which CPUs have, outputs and gradients are those of the module with
    dense weights, bit for bit: compiled alike, a layer does the same with the decoded matrix. On
    others the kernels multiply from the compressed bytes, with sums in float32.

    Weights come back bit for bit (`jentropy.decode(module)`), unless a format rounds them. BF16
    takes 12 bits a weight, and so does float32 whose numbers are all BF16 ones, as those of a model
    that was saved in BF16. FP16 and other float32 matrices have no layout: they stay as they are, a
    message in the log says so once.

    What became `Compressed` is no `nnx.Param`, so that optimisers and `nnx.grad` train what is left
    of these (biases, norms, LoRA) with gradients that flow through the compressed layers.

    To save one, save what it decodes to, `jentropy.decode(nnx.state(module))`, with Orbax or with
    `jentropy.save`: that fits the uncompressed module, on any backend.

    Args:
      module: is changed, weight by weight, so that dense weights need not fit beside the others.
        Give `nnx.clone(module)` to keep it. A module of shapes (`nnx.eval_shape`) gets compressed
        weights without data.
      filter: which matrices, as NNX filters variables: a type, `nnx.PathContains("mlp")`, a
        function of (path, variable), `nnx.All` of these. By default parameters of 4,096 numbers
        and more.
      number_format: what weights are rounded to: `formats.FORMATS["BF16"]`, `formats.FP8_ROW`,
        `formats.INT4_GROUP`, ...; activations and outputs keep their dtypes. None: nothing is lost.
      backend: see `to_resident`.

    Returns:
      The module.

    Raises:
      InputError: a kernel that is not of its layer's shape with a stack before it.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> class Model(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.embed = nnx.Embed(128, 64, param_dtype=jnp.bfloat16, rngs=rngs)
      ...         self.heads = nnx.LinearGeneral(64, (4, 16), param_dtype=jnp.bfloat16, rngs=rngs)
      ...     def __call__(self, ids):
      ...         return self.heads(self.embed(ids))
      >>> model, ids = Model(nnx.Rngs(0)), jnp.arange(6)
      >>> before = model(ids)
      >>> bool((compress_module(model)(ids) == before).all())
      True
      >>> model.heads.kernel.get_value()
      ResidentArray(bfloat16[64, 4, 16], reference_window12, 12.51 bits each)
    """
    chosen = nnx.filterlib.to_predicate(filter)
    made: dict[int, Compressed] = {}  # tied weights stay tied
    for path, layer in list(nnx.iter_modules(module)):
        kind = next((kind for cls, kind in LAYERS.items() if isinstance(layer, cls)), None)
        weight = getattr(layer, kind.weight, None) if kind else None
        if kind is None or not isinstance(weight, nnx.Variable):
            continue
        if isinstance(weight.get_raw_value(), ResidentArray):
            continue
        again = isinstance(weight, Compressed)  # a dense array was put into it
        if id(weight) not in made and not again and not chosen((*path, kind.weight), weight):
            continue
        if id(weight) not in made:
            name = leaf_name((*path, kind.weight))
            values = _compressed(weight, layer, kind, name, number_format, backend)
            if values is None:
                continue
            made[id(weight)] = Compressed(values, **_metadata(weight))
        setattr(layer, kind.weight, made[id(weight)])
        kind.prepare(layer)
    return module


def _compressed(
    weight: nnx.Variable,
    layer: nnx.Module,
    kind: Layer,
    name: str,
    number_format: Format | None,
    backend: str | None,
) -> ResidentArray | None:
    values, matrix = weight.get_raw_value(), kind.shape(layer)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return None
    if tuple(values.shape[max(0, values.ndim - len(matrix)) :]) != matrix:
        raise InputError(
            "kernel",
            tensor=name,
            expected=f"[*stack, {', '.join(map(str, matrix))}], the matrix of its layer last",
            found=list(values.shape),
            hint="layers are stacked along the first axis",
        )
    try:
        return kernels.resident_array(
            values, *kind.axes(layer), backend, number_format=number_format
        )
    except InputError as error:
        raise error.at(tensor=name) from error


def _metadata(weight: nnx.Variable) -> dict[str, Any]:
    """What its owner has said of a variable, but for how its axes are split over a mesh."""
    told = weight.get_metadata(exclude_required=True)
    return {key: value for key, value in told.items() if "sharding" not in key and key != "mesh"}
