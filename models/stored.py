"""Weights as they are stored: codes and parameters, with what multiplies their layer's input.

ModelOpt's AWQ and torchao scale activations before a product, where nothing else could take the
factors: (x * factors) W^T. That is the product with the matrix whose columns are multiplied: the
factors are one more parameter of its format, and its codes stay.
"""

from __future__ import annotations

from dataclasses import replace

from jentropy.checkpoints import Checkpoint, Tensor
from jentropy.checkpoints.checkpoint import Arrays
from jentropy.errors import UnsupportedError
from jentropy.formats import GROUP_INDEX, WHOLE, Parameter, QuantizedTensor

FACTORS = ("act_pre_scale", "pre_quant_scale")  # names of such factors in a module


class StoredWeights:
    """The weights of a checkpoint, those of `FACTORS` joined to the ones beside them."""

    def __init__(self, checkpoint: Checkpoint):
        names = set(checkpoint.names())
        self._factors = {}
        for name in names:
            module, _, last = name.rpartition(".")
            weight = f"{module}.weight"
            if last in FACTORS and weight in names:
                factors, columns = checkpoint.tensor(name), checkpoint.tensor(weight).shape[-1:]
                if factors.shape == columns and factors.dtype is not None:
                    self._factors[weight] = factors

    def of(self, tensor: Tensor, codes: Arrays) -> QuantizedTensor:
        """A weight.

        Args:
          codes: what the tensor's `codes` gave.

        Raises:
          UnsupportedError: columns in scattered groups, whose inputs have factors too.
        """
        weight = replace(tensor.weight, codes=dict(codes))
        factors = self._factors.get(tensor.name)
        if factors is None:
            return weight
        if GROUP_INDEX in codes:
            raise UnsupportedError(
                "weight", tensor=tensor.name, expected="no act-order", found="factors of its input"
            )
        rows = len(tensor.shape) - 1
        parameter = Parameter(
            name="input_scale",
            field="scale",
            element=factors.number_format.element,
            block=(*(WHOLE,) * rows, 1),
        )
        parameters = (*weight.number_format.parameters, parameter)
        codes = {**codes, "input_scale": factors.codes["code"].reshape(*(1,) * rows, -1)}
        return QuantizedTensor(
            number_format=replace(weight.number_format, parameters=parameters), codes=codes
        )

    def has(self, name: str) -> bool:
        """Whether a tensor is factors that have come to a weight."""
        return any(factors.name == name for factors in self._factors.values())
