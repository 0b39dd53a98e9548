"""Dialects: how one tool names and packs a format in a checkpoint.

A dialect is a module with

    NAME       what tensors say of it
    VERSION    of what it makes of arrays: 1 more where a release reads the same ones otherwise
    claims(contents) -> bool     whether the checkpoint is in this dialect
    weight(contents, array) -> Tensor | None   the quantised weight that an array holds the codes of

To add one, write it and give it a line in `DIALECTS`. The first that claims a checkpoint reads it;
arrays that it does not take are weights of their dtype's format, and `plain` claims all.
`weight.py` and `settings.py` have the arrays and the config, each checked; an InputError raised in
`weight` makes the array RAW, with that as its note. What it recognises is recorded in the index of
a compressed checkpoint and read there without the dialect, by how its codes lie in their arrays
(`checkpoints/unpacking.py`).
"""

from __future__ import annotations

from types import ModuleType

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
    plain,
    quark,
    torchao,
)

DIALECTS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        compressed_tensors,
        modelopt,
        deepseek_v4,
        fp8,
        gpt_oss,
        gptq,
        awq,
        autoround,
        mistral,
        mlx,
        quark,
        torchao,
        comfy,
        gguf,
        plain,
    )
}

__all__ = ["DIALECTS"]
