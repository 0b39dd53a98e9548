"""Up to how many rows of x the fused product is the faster one, by TPU and variant.

From static schedules: `python -m jentropy.pallas_kernels.profile --tpu v5e --crossover` prints a
line of this table; `profiling.crossover` says how. With more rows the weight is decoded to dense
BF16, which XLA's product takes. A format that is no variant has the rows of the one that it is
most like.
"""

from __future__ import annotations

FUSED_ROWS: dict[str, dict[str, int]] = {
    "v5e": {
        "BF16": 256,
        "FP8 tensor": 2048,
        "FP8 row": 2048,
        "FP8 128x128": 2048,
        "MXFP8": 2048,
        "INT8 row": 2048,
        "INT4 row": 2048,
        "INT4 g32": 128,
        "INT4 g128": 2048,
        "INT4 row zeros": 2048,
        "INT4 g32 zeros": 136,
        "INT4 g128 zeros": 2048,
        "MXFP4": 2048,
        "NVFP4": 2048,
    },
    "v6e": {
        "BF16": 280,
        "FP8 tensor": 2048,
        "FP8 row": 2048,
        "FP8 128x128": 768,
        "MXFP8": 976,
        "INT8 row": 2048,
        "INT4 row": 2048,
        "INT4 g32": 152,
        "INT4 g128": 2048,
        "INT4 row zeros": 2048,
        "INT4 g32 zeros": 152,
        "INT4 g128 zeros": 2048,
        "MXFP4": 2048,
        "NVFP4": 2048,
    },
    "v7x": {
        "BF16": 256,
        "FP8 tensor": 2048,
        "FP8 row": 2048,
        "FP8 128x128": 400,
        "MXFP8": 480,
        "INT8 row": 2048,
        "INT4 row": 2048,
        "INT4 g32": 80,
        "INT4 g128": 496,
        "INT4 row zeros": 2048,
        "INT4 g32 zeros": 80,
        "INT4 g128 zeros": 504,
        "MXFP4": 2048,
        "NVFP4": 2048,
    },
}
