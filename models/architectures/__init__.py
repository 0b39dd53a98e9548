"""What models are made of, by the class that their `config.json` names.

To add an architecture: a file here with an `Architecture`, and a line in `ARCHITECTURES`. Its
`config` reads `config.json` through `decoder_config`; what the shared parts (`attention`, `layers`,
`decoder.Block`) cannot do yet is a field of `DecoderConfig` that changes nothing by default, and
what tells its layers apart a field of `Layer`.
"""

from __future__ import annotations

from jentropy.models.config import Architecture

from .deepseek_v2 import DEEPSEEK_V2
from .deepseek_v3 import DEEPSEEK_V3
from .glm4_moe import GLM4_MOE
from .gpt_oss import GPT_OSS
from .llama import LLAMA
from .mixtral import MIXTRAL
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE

ARCHITECTURES: dict[str, Architecture] = {
    "DeepseekV2ForCausalLM": DEEPSEEK_V2,
    "DeepseekV3ForCausalLM": DEEPSEEK_V3,
    "Glm4MoeForCausalLM": GLM4_MOE,
    "GptOssForCausalLM": GPT_OSS,
    "LlamaForCausalLM": LLAMA,
    "MixtralForCausalLM": MIXTRAL,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
}
# `model_type`, and the class that is saved without an output projection.
OTHER_NAMES = {other: name for name, made in ARCHITECTURES.items() for other in made.other_names}
