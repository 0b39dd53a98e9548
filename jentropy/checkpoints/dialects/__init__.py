"""Dialects: how one tool names and packs a format in a checkpoint.

To add one, write a module with `weight` (and `claims`, if a declared method does not tell it), and
give it a row in `DIALECTS`. The first that claims a checkpoint reads it; arrays that it does not
take are weights of their dtype's format, and `plain` claims all.

`weight.py` and `settings.py` have the arrays and the config, each checked; an InputError raised in
`weight` makes the array RAW, with that as its note. What a dialect recognises is recorded in the
index of a compressed checkpoint and read there without it, by how its codes lie in their arrays
(`checkpoints/unpacking.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import (
    autoround,
    awq,
    comfy,
    compressed_tensors,
    deepseek_v4,
    fp8,
    gguf,
    gpt_oss,
    gptq,
    mistral,
    mlx,
    modelopt,
    quark,
    torchao,
)
from .weight import Contents, StoredArray, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one tool names and packs a format.

    Attributes:
      weight: the quantised weight that an array holds the codes of; None if it holds no codes.
      methods: those that its checkpoints declare, in lower case.
      signs: what else tells that a checkpoint is in it.
      version: of what it makes of arrays; 1 more where a release reads the same ones otherwise.
    """

    weight: Callable[[Contents, StoredArray], Tensor | None]
    methods: tuple[str, ...] = ()
    signs: Callable[[Contents], bool] = lambda contents: False
    version: int = 1

    def claims(self, contents: Contents) -> bool:
        """Whether a checkpoint is in this dialect."""
        return contents.quant_method in self.methods or self.signs(contents)


PLAIN = "plain"  # every stored array is a weight of its dtype's format
AUTOROUND = ("auto-round", "auto_round", "autoround", "intel/auto-round")
DIALECTS: dict[str, Dialect] = {
    "compressed-tensors": Dialect(
        weight=compressed_tensors.weight, methods=("compressed-tensors",)
    ),
    "modelopt": Dialect(weight=modelopt.weight, signs=modelopt.claims),
    "deepseek-v4": Dialect(weight=deepseek_v4.weight, signs=deepseek_v4.claims),
    "fp8": Dialect(weight=fp8.weight, methods=("fp8", "mxfp8", "fbgemm_fp8")),
    "gpt-oss": Dialect(weight=gpt_oss.weight, methods=("mxfp4",), signs=gpt_oss.claims),
    "gptq": Dialect(weight=gptq.weight, methods=("gptq",)),
    "awq": Dialect(weight=awq.weight, methods=("awq",)),
    "auto-round": Dialect(weight=autoround.weight, methods=AUTOROUND),
    "mistral": Dialect(weight=mistral.weight, methods=("mistral",)),
    "mlx": Dialect(weight=mlx.weight, signs=mlx.claims),
    "quark": Dialect(weight=quark.weight, methods=("quark",)),
    "torchao": Dialect(weight=torchao.weight, methods=("torchao",), signs=torchao.claims),
    "comfy": Dialect(weight=comfy.weight, signs=comfy.claims),
    "gguf": Dialect(weight=gguf.weight, signs=gguf.claims),
    PLAIN: Dialect(weight=lambda contents, array: None, signs=lambda contents: True),
}

__all__ = ["DIALECTS", "PLAIN", "Dialect"]
