"""What models are made of, by the class that their `config.json` names.

To add an architecture: a file here with an `Architecture`, and a line in `ARCHITECTURES`. Its
`config` reads `config.json` through `decoder_config`; what the shared parts (`attention`, `layers`,
`decoder.Block`) cannot do yet is a field of `DecoderConfig` that changes nothing by default, and
what tells its layers apart a field of `Layer`.
"""

from __future__ import annotations

from jentropy.models.config import Architecture

from .llama import LLAMA
from .qwen2 import QWEN2
from .qwen3 import QWEN3

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": LLAMA,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
}
# `model_type`, and the class that is saved without an output projection.
OTHER_NAMES = {other: name for name, made in ARCHITECTURES.items() for other in made.other_names}
