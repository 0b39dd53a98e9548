"""Quantised weights without data: what `to_resident` makes abstract ones of."""

from __future__ import annotations

from jentropy.formats import Format, QuantizedTensor, code_arrays


def abstract_weight(number_format: Format, shape: tuple[int, ...]) -> QuantizedTensor:
    """A weight of a format whose codes and parameters are `jax.ShapeDtypeStruct`.

    Example:
      >>> import jentropy
      >>> from jentropy.formats import INT4_GROUP
      >>> from jentropy.pallas_kernels import abstract_weight
      >>> w = jentropy.to_resident(abstract_weight(INT4_GROUP, (14336, 4096)), backend="tpu")
      >>> w.shape, round(w.bits_per_weight, 3)
      ((14336, 4096), 4.125)
    """
    codes = code_arrays(number_format, shape)
    return QuantizedTensor(number_format=number_format, codes=codes)
