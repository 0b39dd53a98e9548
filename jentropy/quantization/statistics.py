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
      low, high: float32[*stack, columns], the least and the greatest x, and 0.
      gradient: float32[*stack], mean squared gradient of the loss by an output.
      tokens: how many inputs were seen; 0: nothing was, and all of this is made up.

    Example:
      >>> told = Statistics.identity(3)
      >>> told.diagonal.tolist(), float(told.sensitivity)
      ([1.0, 1.0, 1.0], 1.0)
    """

    hessian: Any
    low: Any
    high: Any
    gradient: Any = 1.0
    tokens: Any = 0

    @classmethod
    def identity(cls, columns: int) -> Statistics:
        """Where there is no calibration: inputs are independent, of unit variance."""
        ones = jnp.ones(columns, jnp.float32)
        return cls(hessian=None, low=-ones, high=ones)

    @property
    def largest(self) -> Float32[Array, "*stack columns"]:
        """The largest |x|."""
        return jnp.maximum(-jnp.asarray(self.low), jnp.asarray(self.high))

    @property
    def diagonal(self) -> Float32[Array, "*stack columns"]:
        """E[x^2]."""
        if self.hessian is None:
            return jnp.ones_like(self.high)
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
            low=one(self.low, 1),
            high=one(self.high, 1),
            gradient=one(self.gradient, 0),
        )
