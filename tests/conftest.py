"""Shared by all tests: where fixtures lie, types and shapes that are checked as the code runs."""

from __future__ import annotations

import gc
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before JAX starts: the warpgroups of interpreted GPU kernels wait for each other in XLA's threads.
os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))

import jax
import jaxtyping
import pytest

from . import checking, quickly

checking.install()
sys.setrecursionlimit(4 * sys.getrecursionlimit())  # a checked call takes four frames for one
# No arrays of two ranks or two dtypes meet unless the code says so.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

HERE = Path(__file__).parent
ROOT = HERE.parent

# What `make check` leaves out: tests whose id begins so, a few that take most of the time.
SLOW = (
    "test_aot.py",
    "test_gpu.py",
    "test_gpu_code.py",
    "test_generation.py::test_a_sequence_is_the_same_in_any_batch",
    "test_generation.py::test_a_turn_goes_on_where_the_last_one_ended",
    "test_imports.py::test_works_without",
    "test_matmul.py::test_kernels_that_do_not_work_are_not_taken",
    "test_matmul.py::test_matrices_of_a_stack",
    "test_mesh.py::test_generation_over_a_mesh",
    "test_mesh.py::test_processes_have_a_part_each",
    "test_mesh.py::test_products_over_a_mesh",
    "test_mesh_tpu.py",
    "test_modes.py::test_a_mesh_with_explicit_axes",
    "test_modes.py::test_models",
    "test_notebooks.py",
    "test_own_modules.py::test_a_model_of_stacked_layers_with_dropout",
    "test_own_modules.py::test_linen_modules_take_compressed_parameters",
    "test_own_modules.py::test_what_is_left_trains",
    "test_profile.py",
    "test_pylm.py",
    "test_readme.py",
    "test_recipes.py::test_recipes_are_what_they_say_and_worth_their_bits",
    "test_stacks.py",
    "test_tpu.py",
    "test_cli.py::test_bench_measures",
    "test_cli.py::test_demo_prints_what_the_readme_shows",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Calls are not held to annotations: for what the package itself says to a wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", name="compiled_quickly")
def compiled_quickly_() -> Iterator[None]:
    with quickly.compiled_quickly():
        yield


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Tiny checkpoints that the real tools wrote."""
    return HERE / "fixtures"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Larger checkpoints beside the repository (JENTROPY_SHARED names another place)."""
    path = Path(os.environ.get("JENTROPY_SHARED", ROOT.parent / "shared"))
    if not (path / "checkpoints" / "pylm" / "model.safetensors").is_file():
        pytest.skip("the checkpoint pylm is not on this machine")
    return path


@pytest.fixture(scope="session")
def packed(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every fixture checkpoint, compressed."""
    import jentropy

    folder = tmp_path_factory.mktemp("packed")
    made = {}
    for source in sorted(p for p in fixtures.iterdir() if any(p.glob("*.safetensors"))):
        jentropy.compress_checkpoint(source, folder / source.name)
        made[source.name] = folder / source.name
    return made


def same_bits(a, b) -> bool:
    """Whether two arrays have the same kind, dtype, shape and bits."""
    import numpy as np

    return (
        isinstance(a, jax.Array) == isinstance(b, jax.Array)
        and a.dtype == b.dtype
        and a.shape == b.shape
        and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    )


def same_tree(a, b) -> bool:
    """The same structure, types and bits."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(map(same_leaf, jax.tree.leaves(a), jax.tree.leaves(b)))


def same_leaf(a, b) -> bool:
    """The same type and bits; of random keys and of Python's numbers and texts too."""
    if not hasattr(b, "dtype"):
        return type(a) is type(b) and a == b
    if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
        return a.dtype == b.dtype and same_leaf(jax.random.key_data(a), jax.random.key_data(b))
    return same_bits(a, b)


def read_tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


MAPS = 30_000  # of memory, half of what Linux lets a process have: each program takes some
_ENDED = itertools.count(1)


def pytest_runtest_teardown() -> None:
    """Lets compiled programs go before there are too many for the process."""
    maps = Path("/proc/self/maps")
    if next(_ENDED) % 16 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()
        gc.collect()
