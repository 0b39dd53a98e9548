"""Which backend weights are laid out for, where nobody says.

That a generation of devices has kernels does not mean that they work with a machine's driver,
runtime and compiler. So those of a layout are tried first, once a process, on small weights: what
fails there costs a message, not a crash or wrong numbers.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jentropy import modes
from jentropy.formats import Format, QuantizedTensor, plain_format

from .api import decode, matmul
from .grouped import grouped_matmul
from .laying_out import lay_out
from .layouts import LAYOUTS
from .targets import backend_of
from .variants import VARIANTS, weight_of

logger = logging.getLogger(__name__)

ROWS, SHAPE = (3, 5), (2, 256, 512)  # of x by group; of weights in a stack, as they are stored
TOLERANCE = 1e-3  # of the largest product with the same row of weights


def default_backend(number_format: Format | None = None) -> str:
    """The backend whose layout suits this process's default device.

    "tpu" and "gpu" on the generations that have kernels, if these work; "reference" on everything
    else, with a message in the log if it is a TPU or GPU. Each layout is tried by itself: what
    fails takes none of the others with it.

    Args:
      number_format: of the weight; None: the kernels of any layout have to work.

    Returns:
      One of `layouts.BACKENDS`.

    Example:
      >>> default_backend() in ("reference", "tpu", "gpu")
      True
    """
    wanted = suitable_backend()
    tried = layouts_of(wanted)
    if number_format is not None:
        tried = [name for name in tried if LAYOUTS[name].takes(number_format)][:1]
    works = not tried or any(not trouble_of(name) for name in tried)
    return wanted if wanted == "reference" or works else "reference"


def default_for(weight: Any) -> str:
    """The same for an array, or a `QuantizedTensor`."""
    if isinstance(weight, QuantizedTensor):
        return default_backend(weight.number_format)
    return default_backend(plain_format(weight.dtype))


def suitable_backend() -> str:
    """The same, but for whether its kernels work.

    Returns:
      One of `layouts.BACKENDS`.

    Example:
      >>> suitable_backend() in ("reference", "tpu", "gpu")
      True
    """
    return backend_of(jax.devices()[0])


def layouts_of(backend: str) -> list[str]:
    """Names of the layouts that a backend's kernels read."""
    return [name for name, layout in LAYOUTS.items() if layout.backend == backend]


def has_kernels(backend: str, number_format: Format) -> bool:
    """Whether a layout of the backend's own holds a format."""
    return any(LAYOUTS[name].takes(number_format) for name in layouts_of(backend))


def trouble(backend: str, interpret: Any = False) -> str:
    """What is wrong with a backend's kernels here; nothing if all of them work.

    Args:
      backend: one of `layouts.BACKENDS`.
      interpret: tries them in interpret mode, see `matmul`.

    Returns:
      A sentence for each layout whose kernels fail, or "".

    Example:
      >>> trouble("reference")  # has no kernels
      ''
    """
    found = (trouble_of(name, interpret) for name in layouts_of(backend))
    return "; ".join(message for message in found if message)


@functools.cache
def trouble_of(layout: str, interpret: Any = False) -> str:
    """What is wrong with the kernels of one layout here, which is logged too."""
    own = LAYOUTS[layout]
    for name, variant in VARIANTS.items():
        if not own.has_kernels or not variant.trial or not own.takes(variant.number_format):
            continue
        try:
            reason = _wrong(own.backend, variant.number_format, interpret)
        except Exception as error:  # whatever compilers, drivers and runtimes raise
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        if reason:
            message = (
                f"the kernels of layout {layout} of backend {own.backend!r} do not work here "
                f"({name}: {reason:.300}); products decode such weights in plain JAX"
            )
            logger.warning(message)
            return message
    return ""


@modes.detached
def _wrong(backend: str, number_format: Format, interpret: Any) -> str:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal(SHAPE) * 0.02
    dense[:, ::37, ::41] *= 2.0**12  # escapes of window12
    dense[:, 5, 7:11] = -0.0
    weight = weight_of(number_format, jnp.asarray(dense, jnp.bfloat16))
    packed: Any = lay_out(weight, backend)
    plain: Any = lay_out(weight, "reference")
    expected = decode(plain, jnp.float32)
    decoded = decode(packed, jnp.float32, interpret)
    if np.asarray(decoded).tobytes() != np.asarray(expected).tobytes():
        return "decode gives other numbers"
    x = jnp.asarray(rng.standard_normal((sum(ROWS), SHAPE[-1])), jnp.bfloat16)
    options: dict[str, Any] = {"transpose_w": True, "out_dtype": jnp.float32}
    options["interpret"] = interpret
    one = matmul(x, packed[0], **options)
    by_group = grouped_matmul(x, packed, jnp.asarray(ROWS, jnp.int32), **options)
    rights = [np.asarray(x, np.float64) @ np.asarray(w, np.float64).T for w in expected]
    of_groups = np.where(np.arange(sum(ROWS))[:, None] < ROWS[0], *rights)
    for what, y, right in (("products", one, rights[0]), ("experts", by_group, of_groups)):
        error = (np.abs(np.asarray(y, np.float64) - right).max(0) / np.abs(right).max(0)).max()
        if not error < TOLERANCE:
            return f"{what} are off by {error:.1e} of the largest"
    return ""
