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
from .exaone4 import EXAONE4
from .gemma2 import GEMMA2
from .gemma3 import GEMMA3, GEMMA3_WITH_IMAGES
from .glm4_moe import GLM4_MOE
from .gpt_oss import GPT_OSS
from .granite import GRANITE
from .llama import LLAMA
from .mistral import MISTRAL
from .mixtral import MIXTRAL
from .olmo2 import OLMO2
from .olmo3 import OLMO3
from .phi3 import PHI3
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE
from .smollm3 import SMOLLM3

ARCHITECTURES: dict[str, Architecture] = {
    "DeepseekV2ForCausalLM": DEEPSEEK_V2,
    "DeepseekV3ForCausalLM": DEEPSEEK_V3,
    "Exaone4ForCausalLM": EXAONE4,
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": GEMMA3_WITH_IMAGES,
    "Glm4MoeForCausalLM": GLM4_MOE,
    "GptOssForCausalLM": GPT_OSS,
    "GraniteForCausalLM": GRANITE,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "MixtralForCausalLM": MIXTRAL,
    "Olmo2ForCausalLM": OLMO2,
    "Olmo3ForCausalLM": OLMO3,
    "Phi3ForCausalLM": PHI3,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
    "SmolLM3ForCausalLM": SMOLLM3,
}
# `model_type`, and the class that is saved without an output projection.
OTHER_NAMES = {other: name for name, made in ARCHITECTURES.items() for other in made.other_names}
