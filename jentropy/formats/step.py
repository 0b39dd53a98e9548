"""Steps of decoding that are no parameters: how codes become numbers, what undoes a transform.

A step is a name in `decoders.DECODERS` or `transforms.TRANSFORMS`, whole numbers as settings, and
arrays of its own, which lie among the codes of a tensor. The leading axes of a weight, all but the
last two, are those of a stack: a step is about one matrix, and its arrays have the stack's axes in
front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .element import RAW, ElementFormat

LARGEST = 1 << 62  # no setting and no axis is larger


@dataclass(frozen=True, slots=True, kw_only=True)
class SideArray:
    """An array of a step.

    Attributes:
      name: its key among the arrays of a tensor.
      element: how its codes are read; RAW: as the whole numbers that they are.
      shape: for one matrix.

    Example:
      >>> from jentropy.formats import FP16
      >>> levels = SideArray(name="levels", element=FP16, shape=(16,))
      >>> levels.field, levels.numbers(np.array([0x3C00], np.uint16)).tolist()
      ('table', [1.0])
    """

    name: str
    element: ElementFormat
    shape: tuple[int, ...]

    @property
    def field(self) -> str:
        """The field of the entropy report that it counts in."""
        return "table"

    def numbers(self, codes: Any) -> Any:
        """What its codes stand for: float32; of RAW ones themselves."""
        return codes if self.element.name == RAW else self.element.decode(codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A decoder or a transform of a format; static and hashable.

    Invariants: settings are sorted by name, each 0 or more.

    Attributes:
      name: in `DECODERS` or `TRANSFORMS`, which say what settings and arrays it has.
      settings: whole numbers by name.
      arrays: its own, in the order in which its entry of the table names their roles.

    Example:
      >>> Step(name="codebook", settings=(("columns", 100), ("width", 8))).setting("width")
      8
    """

    name: str
    settings: tuple[tuple[str, int], ...] = ()
    arrays: tuple[SideArray, ...] = ()

    def __post_init__(self) -> None:
        names = [name for name, _ in self.settings]
        if names != sorted(set(names)) or any(
            type(n) is not int or not 0 <= n < LARGEST for _, n in self.settings
        ):
            raise ValueError(f"settings of {self.name}: {self.settings}")

    def setting(self, name: str) -> int:
        """One of the settings."""
        return dict(self.settings)[name]

    def has(self, what: str, settings: tuple[str, ...], roles: tuple[str, ...]) -> None:
        """Raises ValueError unless these are the names of its settings, and as many its arrays."""
        found = tuple(name for name, _ in self.settings)
        if found != tuple(sorted(settings)) or len(self.arrays) != len(roles):
            raise ValueError(
                f"{what} {self.name}: settings {list(found)} and {len(self.arrays)} arrays, "
                f"expected {sorted(settings)} and {list(roles)}"
            )

    def numbers(self, arrays: Mapping[str, Any], roles: tuple[str, ...]) -> dict[str, Any]:
        """Its own arrays by role, read, out of all of a tensor's."""
        return {
            role: own.numbers(arrays[own.name])
            for role, own in zip(roles, self.arrays, strict=True)
        }


ELEMENTWISE = Step(name="elementwise")  # a code is a number of the element


def namespace(array: Any) -> Any:
    """`numpy` or `jax.numpy`: whose functions keep an array what it is.

    Example:
      >>> namespace(np.ones(2)) is np, namespace(jnp.ones(2)) is jnp
      (True, True)
    """
    return np if isinstance(array, np.ndarray) else jnp


def by_matrix(function: Any, arrays: Mapping[str, Any], stack: tuple[int, ...]) -> Any:
    """What a function makes of the arrays of each matrix of a stack.

    Args:
      function: (arrays of one matrix) -> an array.
      arrays: [*stack, ...] each, all NumPy or all JAX.
      stack: leading axes.

    Returns:
      [*stack, ...], of the same kind.

    Example:
      >>> by_matrix(lambda a: a["w"].sum(0), {"w": np.ones((2, 3, 4))}, (2,)).shape
      (2, 4)
    """
    if not stack:
        return function(arrays)
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        for _ in stack:
            function = jax.vmap(function)
        return function(dict(arrays))
    each = [
        function({name: array[at] for name, array in arrays.items()}) for at in np.ndindex(stack)
    ]
    return np.stack(each).reshape(*stack, *each[0].shape)
