"""Compiles for a TPU that is not there: libtpu from the package index, no device needed.

libtpu reads its environment when it is loaded, once: `prepare` comes before the first compile of a
process, and what it was given stays.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from jentropy.errors import UnsupportedError

TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server what machine this is
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of this machine; every generation can be compiled for
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a second process would stop at a lock
}


def prepare(dump: Path | None = None) -> None:
    """Sets the environment of libtpu; with `dump`, it writes there what it schedules.

    Raises:
      UnsupportedError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UnsupportedError(
            "no compiler for TPU",
            expected="libtpu",
            found="nothing of that name",
            hint="pip install 'jentropy[aot]'",
        )
    os.environ.update(ENVIRONMENT)
    if dump is not None:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
    jax.config.update("jax_platforms", "cpu")


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {name: metadata.version(name) for name in ("jax", "libtpu")}


def compile_for(target: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Compiles a function of abstract arguments for a TPU generation.

    Raises:
      jax.errors.JaxRuntimeError: the compiler's own error.
    """
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[target])
    place = SingleDeviceSharding(topology.devices[0])
    given = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments
    )
    return jax.jit(function).lower(*given).compile()
