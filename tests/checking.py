"""Holds calls of the package to their annotations, as it runs under the tests.

jaxtyping's import hook decorates every function. Its decorator compares the shapes of a call's
arrays with each other, which takes some 30 us: where no array is annotated, beartype alone checks
the types, in 1 us; and what a function defines inside has no check made anew for every call.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

typed = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int is a float
of_arrays = jaxtyping.jaxtyped
SHAPED = re.compile(r"(Array|ndarray)\b[^\]]*, *['\"]")


def has_shapes(function: Any) -> bool:
    """Whether an annotation of a function names axes of arrays: `UInt[Array, "rows columns"]`."""
    return any(SHAPED.search(str(annotation)) for annotation in function.__annotations__.values())


def checked(function: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """What the hook decorates functions and classes with, in the stead of `jaxtyping.jaxtyped`."""
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if isinstance(function, classmethod | staticmethod):
        return type(function)(checked(function.__func__, typechecker=typechecker))
    if isinstance(function, property):
        return function.getter(checked(function.fget, typechecker=typechecker))
    if inspect.isclass(function):
        if dataclasses.is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = checked(function.__init__, typechecker=typechecker)
        return function
    if not inspect.isfunction(function) or has_shapes(function):
        return of_arrays(function, typechecker=typechecker)
    if "<locals>" in function.__qualname__ and function.__name__ != "__init__":
        return function
    types = typechecker(function)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return (function if jaxtyping.config.jaxtyping_disable else types)(*args, **options)

    return call


def install() -> None:
    """To be called before the package is imported."""
    jaxtyping.jaxtyped = checked  # where the hook finds it
    jaxtyping.install_import_hook("jentropy", f"{__name__}.typed")
