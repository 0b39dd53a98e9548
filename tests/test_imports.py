"""What `import jentropy` loads and needs: no kernel compilers, no framework that few commands need.

And which pieces of JAX that are no interface the project touches, and where.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib

import pytest

import jentropy
from jentropy import jax_internals

from .conftest import ROOT

# Private and experimental pieces of jax that only kernels, or only speed, need.
PIECES = (
    "jax.experimental.pallas",
    "jax.experimental.pallas.mosaic_gpu",
    "jax.experimental.pallas.tpu",
    "jax.experimental.mosaic.gpu",
    "jax.experimental.topologies",
    "jax.experimental.xla_metadata",
    "jaxlib.mlir.dialects.memref",
    "jaxlib.mlir.dialects.vector",
)
HEAVY = ("flax", "matplotlib", "jentropy.bench", "jentropy.models", "jentropy.report", *PIECES[:5])
WORK = """
import numpy as np
w = {"w": np.random.default_rng(0).standard_normal((300, 500)).astype(jentropy.formats.BF16.dtype)}
packed = jentropy.compress(w)
assert (jentropy.decompress(packed)["w"].view("u2") == w["w"].view("u2")).all()
assert jentropy.analyze(w).weights == 150000
resident = jentropy.to_resident(packed, backend="reference")["w"]
assert jentropy.matmul(np.ones((2, 300), np.float32), resident).shape == (2, 500)
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(program: str, before: str = "") -> set[str]:
    """Heavy modules that a program loads, but for those that are there before it."""
    text = run(
        f"import sys, jax; {before}\nbefore = set(sys.modules)\n{program}\n"
        f"print('loaded', *sorted((set(sys.modules) - before) & set({HEAVY})))"
    )
    return set(text.splitlines()[-1].split()[1:])


def test_import_is_light():
    listed = "assert {'__version__', *jentropy.__all__} <= set(dir(jentropy))"
    assert loaded(f"import jentropy; {listed}") == set()


def test_inspect_is_light(tmp_path):
    """Orbax imports parts of flax for itself, if it is installed; nothing else may."""
    jentropy.save(tmp_path / "tree", jentropy.compress({"w": ones()}))
    program = (
        "from jentropy.cli.main import main\n"
        f"assert main(['inspect', {str(tmp_path / 'tree')!r}]) == 0"
    )
    assert loaded(program, before="import orbax.checkpoint") == set()


def ones():
    import jax.numpy as jnp

    return jnp.ones((8, 16), jnp.bfloat16)


@pytest.mark.parametrize("piece", PIECES)
def test_works_without(piece):
    """As on a release of jax that has moved it."""
    run(
        f"import jax, orbax.checkpoint, sys; sys.modules['{piece}'] = None; import jentropy\n{WORK}"
    )


# What kernels are written in, and tests of them interpret.
KERNELS = {
    "jax.experimental.pallas",
    "jax.experimental.pallas.tpu",
    "jax.experimental.pallas.mosaic_gpu",
}
RUN_KERNELS = ("test_tpu.py", "products.py")  # tests that interpret or emulate them
COMPILES = "quickly.py"  # tells XLA's compiler what all programs of a test are compiled with
FOLDERS = ("jentropy", "pallas_kernels", "models", "benchmarks", "tests")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def internals(path) -> set[str]:
    """Private and experimental modules of JAX that a file imports, or names as attributes."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    private = (
        "jax._src",
        "jax.experimental",
        "jax.interpreters",
        "jax.extend",
        "jaxlib",
        "jax.lib",
    )
    return {name for name in names if name.startswith(private) and name != "jaxlib"}


def test_private_pieces_of_jax_stand_in_two_modules():
    ours = (ROOT / "jentropy" / "jax_internals.py", ROOT / "pallas_kernels/hopper/mosaic.py")
    for path in FILES:
        names = internals(path)
        if path in ours:
            assert len(names) > 5
        elif path.is_relative_to(ROOT / "pallas_kernels") or path.name in RUN_KERNELS:
            assert names <= KERNELS, path
        elif path.name == COMPILES:
            assert names == {"jax._src.compiler"}
        else:
            assert not names, path


def test_the_versions_of_jax_that_were_tried_are_those_that_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = ",".join(
        sign + ".".join(map(str, version))
        for sign, version in ((">=", jax_internals.OLDEST), ("<", jax_internals.UNTRIED))
    )
    everything = [*project["dependencies"], *project["optional-dependencies"]["aot"]]
    ours = [line for line in everything if line.startswith("jax") and "typing" not in line]
    assert ours == [
        name + bounds for name in ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt")
    ]
