"""Compiles for devices that are not there, by the compilers of extra `aot`.

A compiler reads its environment when it is loaded, once: `prepare` comes before the first compile
of a process, and what it was given stays.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from jentropy import jax_internals
from jentropy.errors import UnsupportedError
from jentropy.pallas_kernels.targets import TPUS, taken_for

from . import sass, schedule

# Of a dump only what is read: all of it takes most of a compile's time.
READ = f"--xla_jf_dump_llo_pass_label_regex=.*({'|'.join(schedule.FILES)}).*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """What compiles for a target.

    Attributes:
      modules: that show that a package is there.
      tools: programs of packages.
      topology: what describes the device to JAX.
      environment: variables.
      dump: variables that make it write what it schedules to a folder, `{}` in them.
    """

    modules: Mapping[str, str]
    tools: Mapping[str, str] = field(default_factory=dict)
    topology: Mapping[str, str]
    environment: Mapping[str, str]
    dump: Mapping[str, str]


def _tpu(topology: str) -> Compiler:
    return Compiler(
        modules={"libtpu": "libtpu"},
        topology={"platform": "tpu", "topology_name": topology},
        environment={
            "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server what machine this is
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of this machine; it compiles for all
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a second process would stop at a lock
        },
        dump={"LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={{}} --xla_jf_dump_llo_text=true {READ}"},
    )


COMPILERS = {
    "v5e": _tpu("v5e:2x2"),
    "v6e": _tpu("v6e:2x2"),
    "v7x": _tpu("tpu7x:2x2x1"),
    "h200": Compiler(
        modules={
            "jax_cuda13_plugin": "jax-cuda13-plugin",
            "jax_plugins.xla_cuda13": "jax-cuda13-pjrt",
        },
        tools={"ptxas": "nvidia-cuda-nvcc", "nvdisasm": "nvidia-cuda-nvdisasm"},
        topology={
            "platform": "cuda",
            "topology": "1x1x1",
            "target_config": (resources.files(__package__) / "h200.txtpb").read_text(),
        },
        environment={"XLA_FLAGS": "--xla_gpu_autotune_level=0"},  # nothing can be run
        dump={"MOSAIC_GPU_DUMP_TO": "{}", "MOSAIC_GPU_DUMP_PTX": "1"},
    ),
}


def missing(target: str) -> list[str]:
    """Packages that a target needs and that are not installed."""

    def is_there(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # the package that it would be in
            return False

    compiler = COMPILERS[target]
    return [
        *(package for module, package in compiler.modules.items() if not is_there(module)),
        *(package for tool, package in compiler.tools.items() if sass.path_of(tool) is None),
    ]


def prepare(target: str, dump: Path | None = None) -> None:
    """Sets the environment of a target's compiler; with `dump`, it writes there what it makes.

    Raises:
      UnsupportedError: a package is not installed.
    """
    if packages := missing(target):
        raise UnsupportedError(
            f"no compiler for {target}",
            expected=", ".join(packages),
            found="nothing of that name",
            hint="pip install 'jentropy[aot]'",
        )
    compiler = COMPILERS[target]
    written = {} if dump is None else {k: v.format(dump) for k, v in compiler.dump.items()}
    for name, value in {**compiler.environment, **written}.items():
        before = os.environ.get(name, "") if name == "XLA_FLAGS" else ""
        os.environ[name] = f"{before} {value}".strip()
    jax.config.update("jax_platforms", "cpu")


def empty(dump: Path) -> None:
    """Removes what earlier compiles wrote."""
    for old in dump.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def versions(target: str) -> dict[str, str]:
    """Of what the figures depend on."""
    compiler = COMPILERS[target]
    packages = ("jax", *compiler.modules.values(), *compiler.tools.values())
    return {name: metadata.version(name) for name in packages}


def compile_for(
    target: str, function: Callable[..., Any], *arguments: Any, **static: Any
) -> jax.stages.Compiled:
    """Compiles a function of abstract arguments.

    Raises:
      jax.errors.JaxRuntimeError: the compiler's own error.
    """
    return lower_for(target, function, *arguments, **static).compile()


def lower_for(
    target: str, function: Callable[..., Any], *arguments: Any, **static: Any
) -> jax.stages.Lowered:
    """The program that `compile_for` compiles."""
    with taken_for(target) if target in TPUS else nullcontext():
        return jax.jit(function, static_argnames=tuple(static)).lower(
            *placed(target, arguments), **static
        )


def placed(target: str, arguments: Any) -> Any:
    """Arrays of a pytree without data, on the device that is compiled for."""
    place = SingleDeviceSharding(jax_internals.described_device(**COMPILERS[target].topology))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments)
