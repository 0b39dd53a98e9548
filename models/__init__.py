"""Flax models that run from compressed weights, imported as `jentropy.models`.

To add an architecture, see `architectures`.
"""

from __future__ import annotations

from pathlib import Path

from . import activations, calibration, evaluation, quantizing, texts
from .architectures import ARCHITECTURES
from .chat import ChatTemplate, load_chat_template
from .compressed_params import CompressedParam, compress_params
from .compressing import Compressed, compress_module
from .config import DecoderConfig, LatentConfig, RopeConfig
from .decoder import Decoder
from .expert_config import ExpertsConfig
from .generation import advance, generate, sample, step, stream
from .loading import load
from .reading import bytes_per_token
from .sampling import Sampling, sampling_of
from .session import Answer, Session
from .spilling import Spilled, spill
from .state import State, prefill
from .text import continue_text, encode, load_tokenizer

BUNDLED = Path(__file__).parent / "bundled" / "pystdlib"  # the demo's model

__all__ = [
    "ARCHITECTURES",
    "Answer",
    "BUNDLED",
    "ChatTemplate",
    "Compressed",
    "CompressedParam",
    "Decoder",
    "DecoderConfig",
    "ExpertsConfig",
    "LatentConfig",
    "RopeConfig",
    "Sampling",
    "Session",
    "Spilled",
    "State",
    "activations",
    "advance",
    "bytes_per_token",
    "calibration",
    "compress_module",
    "compress_params",
    "continue_text",
    "encode",
    "evaluation",
    "generate",
    "load",
    "load_chat_template",
    "load_tokenizer",
    "prefill",
    "quantizing",
    "sample",
    "sampling_of",
    "spill",
    "step",
    "stream",
    "texts",
]
