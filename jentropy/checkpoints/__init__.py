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
from .repairing import repair
from .salvaging import Salvaged, salvage
from .saving import save
from .verifying import Verified, verify

__all__ = [
    "DIALECTS",
    "Checkpoint",
    "CompressedCheckpoint",
    "Inspection",
    "Salvaged",
    "Tensor",
    "Verified",
    "analyze",
    "compress_checkpoint",
    "decompress_checkpoint",
    "inspect",
    "load",
    "open_checkpoint",
    "repair",
    "salvage",
    "save",
    "verify",
]
