"""What every exported name says of itself; that its example runs, test_architecture tests."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from typing import Any

import pytest

PACKAGES = (
    "jentropy",
    "jentropy.formats",
    "jentropy.entropy",
    "jentropy.codecs",
    "jentropy.containers",
    "jentropy.checkpoints",
    "jentropy.report",
    "jentropy.models",
    "jentropy.pallas_kernels",
)


def exported() -> dict[str, Any]:
    """Functions and classes by the first name that they are exported under, errors left out."""
    names: dict[int, tuple[str, Any]] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value):
                public = not issubclass(value, Exception)
            else:  # what is jitted or cached is no function any more
                public = inspect.isfunction(value) or hasattr(value, "__wrapped__")
            if public:
                names.setdefault(id(value), (f"{package}.{name}", value))
    return dict(names.values())


EXPORTED = exported()


def sections(text: str) -> dict[str, str]:
    """Sections of a docstring in Google's style."""
    parts = re.split(r"^(Args|Attributes|Returns|Yields|Raises|Example):\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def raises(function: Any) -> bool:
    """Whether a function itself raises what it makes."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    return any(isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call) for n in ast.walk(tree))


def test_what_is_public_is_found():
    assert len(EXPORTED) > 60
    assert "jentropy.matmul" in EXPORTED
    assert sections("A.\n\nArgs:\n  x: y.\n\nRaises:\n  Z: q.\n") == {
        "Args": "  x: y.\n\n",
        "Raises": "  Z: q.\n",
    }


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_names_say_what_they_do(name):
    value = EXPORTED[name]
    text = inspect.getdoc(value) or ""
    told = sections(text)
    assert re.match(r"\S.*[.:]$", text.partition("\n\n")[0].replace("\n", " ")), "a line to begin"
    assert ">>> " in told.get("Example", ""), "an example"
    if inspect.isclass(value):
        return
    signature = inspect.signature(value)
    for parameter in signature.parameters:
        described = rf"^  (\w+, )*\*{{0,2}}{parameter}(, \w+)*:"
        assert re.search(described, told.get("Args", ""), re.M), parameter
    if signature.return_annotation not in ("None", None):
        assert "Returns" in told or "Yields" in told, "what it returns"
    assert "Raises" in told or not raises(value), "what it raises"
