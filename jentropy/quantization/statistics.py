"""What calibration knows of a linear layer: its inputs x, and how much its outputs matter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of one layer y = x W^T, W [rows, columns]; of a stack of them with its axes in front.

    Attributes:
      hessian: float32[*stack, columns, columns], E[x x^T]; None: the identity, which takes no
        memory.
      largest: float32[*stack, columns], the largest |x|.
      gradient: float32[*stack], mean squared gradient of the loss by an output.
      tokens: how many inputs were seen; 0: nothing was, and all of this is made up.

    Example:
      >>> told = Statistics.identity(3)
      >>> told.diagonal.tolist(), float(told.sensitivity)
      ([1.0, 1.0, 1.0], 1.0)
    """

    hessian: Any
    largest: Any
    gradient: Any = 1.0
    tokens: Any = 0

    @classmethod
    def identity(cls, columns: int) -> Statistics:
        """Where there is no calibration: inputs are independent, of unit variance."""
        return cls(hessian=None, largest=jnp.ones(columns, jnp.float32))

    @property
    def diagonal(self) -> Float32[Array, "*stack columns"]:
        """E[x^2]."""
        if self.hessian is None:
            return jnp.ones_like(self.largest)
        return jnp.diagonal(jnp.asarray(self.hessian), axis1=-2, axis2=-1)

    @property
    def sensitivity(self) -> Float32[Array, "*stack"]:
        """Mean loss of a squared error of the weights: gradient times mean of E[x^2]."""
        return jnp.asarray(self.gradient, jnp.float32) * self.diagonal.mean(-1)

    def of(self, index: tuple[int, ...]) -> Statistics:
        """Of one matrix of a stack; what has no stack's axes serves all of them."""

        def one(array: Any, rank: int) -> Any:
            return array[index] if jnp.ndim(array) == len(index) + rank else array

        return replace(
            self,
            hessian=None if self.hessian is None else one(self.hessian, 2),
            largest=one(self.largest, 1),
            gradient=one(self.gradient, 0),
        )
