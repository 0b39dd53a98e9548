"""Checkpoints in and out: safetensors, Hugging Face directories, Orbax, compressed checkpoints."""

from .analysis import analyze
from .checkpoint import Checkpoint, Tensor
from .compressed import CompressedCheckpoint
from .compressing import compress_checkpoint
from .decompressing import decompress_checkpoint
from .dialects import DIALECTS
from .inspecting import Inspection, inspect
from .loading import load
from .opening import open_checkpoint
from .saving import save
from .verifying import verify

__all__ = [
    "DIALECTS",
    "Checkpoint",
    "CompressedCheckpoint",
    "Inspection",
    "Tensor",
    "analyze",
    "compress_checkpoint",
    "decompress_checkpoint",
    "inspect",
    "load",
    "open_checkpoint",
    "save",
    "verify",
]
