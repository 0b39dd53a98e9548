"""Up to how many rows of x the fused product is the faster one, by TPU and variant.

From static schedules: `python -m jentropy.pallas_kernels.profile --tpu v5e --crossover` prints a
line of this table; `profiling.crossover` says how. With more rows the weight is decoded to dense
BF16, which XLA's product takes. A format that is no variant has the rows of the one that it is
most like.

Not computed yet, but one number for a TPU: those of INT4 by groups and of FP4, and on v6e of MXFP8,
INT8 and INT4 by row.
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
        "INT4 g32": 2048,
        "INT4 g128": 2048,
        "INT4 row zeros": 2048,
        "INT4 g32 zeros": 2048,
        "INT4 g128 zeros": 2048,
        "MXFP4": 2048,
        "NVFP4": 2048,
    },
    "v6e": {
        "BF16": 280,
        "FP8 tensor": 2048,
        "FP8 row": 2048,
        "FP8 128x128": 768,
        "MXFP8": 1024,
        "INT8 row": 1024,
        "INT4 row": 1024,
        "INT4 g32": 1024,
        "INT4 g128": 1024,
        "INT4 row zeros": 1024,
        "INT4 g32 zeros": 1024,
        "INT4 g128 zeros": 1024,
        "MXFP4": 1024,
        "NVFP4": 1024,
    },
    "v7x": {
        "BF16": 256,
        "FP8 tensor": 2048,
        "FP8 row": 2048,
        "FP8 128x128": 400,
        "MXFP8": 480,
        "INT8 row": 2048,
        "INT4 row": 2048,
        "INT4 g32": 256,
        "INT4 g128": 256,
        "INT4 row zeros": 2048,
        "INT4 g32 zeros": 256,
        "INT4 g128 zeros": 256,
        "MXFP4": 256,
        "NVFP4": 256,
    },
}
