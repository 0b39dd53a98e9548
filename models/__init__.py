"""Flax models that run from compressed weights, imported as `jentropy.models`.

To add an architecture, see `architectures`.
"""

from __future__ import annotations

from pathlib import Path

from .architectures import ARCHITECTURES, OTHER_NAMES
from .compressed_params import CompressedParam, compress_params
from .compressing import Compressed, compress_module
from .config import DecoderConfig, RopeConfig
from .decoder import Decoder
from .generation import generate
from .loading import load
from .text import continue_text, load_tokenizer

BUNDLED = Path(__file__).parent / "bundled" / "pystdlib"  # the demo's model

__all__ = [
    "ARCHITECTURES",
    "BUNDLED",
    "Compressed",
    "CompressedParam",
    "Decoder",
    "DecoderConfig",
    "OTHER_NAMES",
    "RopeConfig",
    "compress_module",
    "compress_params",
    "continue_text",
    "generate",
    "load",
    "load_tokenizer",
]
