"""Where a checkpoint's precision came from, as far as its config tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jentropy.entropy import Origin

from .contents import Contents

# Model types (of config.json) that were trained in what they are published in, by the method that
# their config declares.
_TRAINED = {
    ("fp8", "deepseek_v3"): "native",
    ("fp8", "deepseek_v32"): "native",
    ("fp8", "deepseek_v4"): "native",
    ("fp8", "kimi_k2"): "native",
    ("mxfp4", "gpt_oss"): "QAT",
}
_TOOLS = (  # what the methods of tools begin with that quantise a trained model
    "auto-round", "autoround", "awq", "bitsandbytes", "compressed-tensors", "eetq", "fbgemm_fp8",
    "finegrained_fp8", "fp8", "gptq", "higgs", "hqq", "mlx", "modelopt", "quark", "quanto", "spqr",
    "torchao", "vptq",
)  # fmt: skip
_QAT = ("qat", "quantization_aware", "quantization-aware")


def origin_of(contents: Contents) -> Origin:
    """The origin of a model's precision.

    Args:
      contents: the configs count.

    Returns:
      An `Origin`, and what told it.

    Example:
      >>> from pathlib import Path
      >>> contents = Contents(
      ...     source=Path("model"),
      ...     arrays={},
      ...     config={"model_type": "llama"},
      ...     quantization={"quant_method": "awq"},
      ... )
      >>> origin_of(contents)
      Origin(kind='PTQ', told='quant_method awq, model_type llama')
    """
    config, method = contents.config or {}, contents.quant_method
    kind = config.get("model_type")
    if contents.quantization is None:
        dtype = config.get("dtype") or config.get("torch_dtype")
        if not isinstance(dtype, str):
            return Origin()
        return Origin(kind="native", told=f"{dtype}, and no quantisation is declared")
    told = f"quant_method {method}, model_type {kind}"
    words = (str(word).lower() for word in _words([config, contents.quantization]))
    if trained := next((word for word in words if any(name in word for name in _QAT)), None):
        return Origin(kind="QAT", told=f"{told}, {trained!r}")
    if trained := _TRAINED.get((str(method), str(kind))):
        return Origin(kind=trained, told=told)
    return Origin(kind="PTQ" if str(method).startswith(_TOOLS) else "unknown", told=told)


def _words(told: Any) -> list[Any]:
    """Keys and values of nested JSON."""
    if isinstance(told, Mapping):
        return [*told, *(word for value in told.values() for word in _words(value))]
    if isinstance(told, list | tuple):
        return [word for value in told for word in _words(value)]
    return [told]
