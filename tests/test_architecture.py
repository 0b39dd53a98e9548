"""The house: which package may import which, what is packaged, and that examples run."""

from __future__ import annotations

import ast
import doctest
import graphlib
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

import jentropy

from .conftest import ROOT, SLOW

# Lower layers first. A package imports from those before it (and from itself) only.
LAYERS = [
    {"errors", "jax_internals", "release"},
    {"forks"},
    {"modes"},
    {"schema"},
    {"formats"},
    {"entropy"},
    {"codecs"},
    {"containers"},
    {"checkpoints", "pallas_kernels", "quantization"},
    {"models", "training"},
    {"report"},
    {"bench"},
    {"cli"},
    {"__main__"},
]
FOLDERS = {
    "jentropy": ROOT / "jentropy",
    "jentropy.pallas_kernels": ROOT / "pallas_kernels",
    "jentropy.models": ROOT / "models",
}
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules() -> dict[str, Path]:
    """Every module of the project by its import name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


MODULES = modules()


def layer(name: str) -> int:
    part = name.split(".")[1]
    return next(i for i, names in enumerate(LAYERS) if part in names)


def imports(name: str, path: Path) -> set[str]:
    """Modules of the project that a module imports, anywhere in it."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *([base] if base else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


@pytest.mark.parametrize("name", [n for n in MODULES if n != "jentropy"])
def test_imports_go_down_only(name):
    for other in imports(name, MODULES[name]):
        assert other.split(".")[0] not in ("models", "pallas_kernels"), "import jentropy.*"
        parts = other.split(".")
        if parts[0] != "jentropy" or len(parts) == 1:
            continue
        if not any(parts[1] in names for names in LAYERS):
            assert layer(name) >= layer("x.report"), f"{other} is the top package's"
            continue
        same = parts[1] == name.split(".")[1]
        assert same or layer(other) < layer(name), f"{name} imports {other}"


def test_no_modules_import_each_other():
    """Not even inside of functions: a package's names count as its `__init__.py`'s."""
    graph = {}
    for name, path in MODULES.items():
        found = imports(name, path)
        parents = {other.rpartition(".")[0] for other in found if other in MODULES}
        named = {other.rpartition(".")[0] for other in found if other not in MODULES} - {""}
        graph[name] = {o for o in found if o in MODULES and (o not in parents or o in named)}
    graph.pop("jentropy")  # whose names are imported when they are asked for
    kernels = "jentropy.pallas_kernels"
    graph[f"{kernels}.resident"].remove(f"{kernels}.layouts")  # a weight looks up its own by name
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_every_folder_is_packaged():
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(CONFIG["tool"]["setuptools"]["packages"]) == packages


def test_no_module_is_a_drawer():
    for name in MODULES:
        assert name.rpartition(".")[2] not in {"utils", "helpers", "misc", "common"}


def test_version_stands_once():
    assert CONFIG["project"]["version"] == jentropy.__version__


def test_constraints_name_no_addresses():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 50
    for line in pins:
        assert "==" in line, line
        assert "/" not in line, line


CONTRACT = {
    "analyze": "source",
    "open_checkpoint": "path",
    "compress": "pytree",
    "decompress": "packed",
    "to_resident": "packed backend",
    "matmul": "x w transpose_w backend out_dtype interpret",
    "save": "path packed",
    "load": "path sharding",
    "verify": "path",
    "models.load": "path mesh compute_dtype",
    "models.generate": "model input_ids max_new_tokens",
    "report.write_html": "reports file",
}


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contract_holds(name):
    import inspect

    function = jentropy
    for part in name.split("."):
        function = getattr(function, part)
    expected = CONTRACT[name].split()
    assert list(inspect.signature(function).parameters)[: len(expected)] == expected
    assert function.__doc__


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("name", [n for n in MODULES if not n.endswith("pystdlib")])
def test_modules_say_what_they_do_and_their_examples_run(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    failed, _ = doctest.testmod(module)
    assert failed == 0


def test_importing_touches_no_device():
    import subprocess
    import sys

    code = (
        "import jentropy, jentropy.models, jentropy.pallas_kernels\n"
        "from jentropy.jax_internals import started_backends\n"
        "assert not started_backends(), started_backends()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert jax.devices()


def test_every_public_name_is_there():
    assert sorted(set(jentropy.__all__)) == sorted(jentropy.__all__)
    for name in jentropy.__all__:
        assert getattr(jentropy, name) is not None
    with pytest.raises(AttributeError, match="compres"):
        jentropy.compres  # noqa: B018


HEAVY = ("flax", "matplotlib", "orbax", "tokenizers", "jentropy.models", "jentropy.report")


def test_an_import_takes_no_more_than_it_needs():
    code = f"import sys, jentropy; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("start", SLOW)
def test_what_check_leaves_out_is_there(start):
    file, _, name = start.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert not name or name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
