"""JAX's modes while this package computes, whatever its caller has set.

Strict promotion, transfer guards, a disabled jit and the mesh in use are there to hold the
caller's own code to something. Code here is written for JAX's defaults, and takes them for itself:

    standard  promotion of dtypes and ranks, transfers, jit: of code that may be traced
    detached  also no mesh and no search for NaN: of code that moves data between host and device
    automatic where arguments lie on a mesh with Explicit axes, XLA decides how what is between
              them is split

A mode is its thread's own: what runs in another thread takes it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .errors import UnsupportedError
from .forks import expect_threads


@contextmanager
def standard_modes() -> Iterator[None]:
    """JAX's default promotion, transfers and jit.

    Example:
      >>> import jax
      >>> with jax.numpy_dtype_promotion("strict"), standard_modes():
      ...     (jax.numpy.int8(1) + jax.numpy.int32(1)).dtype.name
      'int32'
    """
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.transfer_guard("allow"),
        jax.disable_jit(False),
    ):
        yield


@contextmanager
def detached_modes() -> Iterator[None]:
    """The same, no mesh, and NaN and infinities as any other numbers.

    Raises:
      UnsupportedError: what runs in it came upon numbers that are only being traced; in a child
        of a process that had used JAX.
    """
    expect_threads()
    with standard_modes(), any_numbers(), _no_mesh():
        try:
            yield
        except jax.errors.JAXTypeError as error:
            raise traced() from error


# Of functions that run, or are traced, in these modes.
standard, detached = standard_modes(), detached_modes()


@contextmanager
def any_numbers() -> Iterator[None]:
    """Weights may hold NaN and infinities: that is not what `jax_debug_nans` looks for.

    Example:
      >>> with jax.debug_nans(True), any_numbers():
      ...     float(jax.numpy.float32(0) / 0)
      nan
    """
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


def _no_mesh() -> AbstractContextManager[Any]:
    try:
        return jax.set_mesh(None)
    except ValueError:  # inside of a trace JAX lets no mesh be left
        return nullcontext()


def traced(hint: str = "call it outside of them") -> UnsupportedError:
    """The error of a function that needs numbers, where JAX is tracing.

    Args:
      hint: what to do instead.

    Returns:
      An error to raise.

    Example:
      >>> print(traced())
      numbers: expected concrete ones, found a trace of jax.jit, vmap or the like \
(call it outside of them)
    """
    return UnsupportedError(
        "numbers", expected="concrete ones", found="a trace of jax.jit, vmap or the like", hint=hint
    )


def explicit_mesh(*arguments: Any) -> Any:
    """The mesh with Explicit axes that arrays of pytrees lie on; None if there is none.

    None also inside of `shard_map`, where every device has its own part of an array.

    Args:
      arguments: pytrees; leaves other than arrays are on none.

    Returns:
      A `jax.sharding.AbstractMesh`, or None.

    Example:
      >>> explicit_mesh({"w": jax.numpy.ones(3)}) is None
      True
    """
    if AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types:
        return None
    for leaf in jax.tree.leaves(arguments):
        is_array = isinstance(leaf, jax.Array)
        sharding = getattr(jax.typeof(leaf), "sharding", None) if is_array else None
        if sharding is not None and AxisType.Explicit in sharding.mesh.axis_types:
            return sharding.mesh
    return None


def spec_of(array: Any, axes: int | None = None) -> PartitionSpec:
    """How the axes of an array on a mesh with Explicit axes are split.

    Args:
      array: of JAX, or of NumPy, which is on no mesh.
      axes: how many of the first ones; None: all of them.

    Example:
      >>> spec_of(jax.numpy.ones((2, 3)), 1) in (PartitionSpec(), PartitionSpec(None))
      True
    """
    sharding = getattr(jax.typeof(array), "sharding", None)
    return PartitionSpec(*(() if sharding is None else tuple(sharding.spec)[:axes]))


def automatic(run: Callable[..., Any], *arguments: Any, out: Callable[[], Any]) -> Any:
    """run(*arguments); over Explicit axes of a mesh as if they were Auto.

    Args:
      run: what is computed.
      arguments: pytrees of arrays.
      out: gives the partition specs of the results then, or a prefix of their pytree.

    Returns:
      What `run` does.

    Example:
      >>> float(automatic(jax.numpy.sum, jax.numpy.ones(3), out=PartitionSpec))
      3.0
    """
    mesh = explicit_mesh(*arguments)
    if mesh is None:
        return run(*arguments)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), out())
    return jax.sharding.auto_axes(run, out_sharding=places)(*arguments)
