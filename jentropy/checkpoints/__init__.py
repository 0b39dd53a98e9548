"""Checkpoints in and out: safetensors, Hugging Face directories, Orbax, compressed checkpoints."""

from .analysis import analyze
from .checkpoint import Checkpoint, Tensor
from .compressed import CompressedCheckpoint, decompress_checkpoint, load
from .compressing import compress_checkpoint, save
from .dialects import DIALECTS
from .inspecting import Inspection, inspect
from .opening import open_checkpoint
from .verifying import Verified, verify

__all__ = [
    "DIALECTS",
    "Checkpoint",
    "CompressedCheckpoint",
    "Inspection",
    "Tensor",
    "Verified",
    "analyze",
    "compress_checkpoint",
    "decompress_checkpoint",
    "inspect",
    "load",
    "open_checkpoint",
    "save",
    "verify",
]
