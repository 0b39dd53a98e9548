"""The kernels of FP8, INT8 and INT4 on TPU, in one record."""

from __future__ import annotations

from jentropy.pallas_kernels.layout import Kernels

from . import decode, matmul, plan

KERNELS = Kernels(
    plan=plan.plan,
    multiply=matmul.multiply,
    decode=decode.decode,
    grouped=matmul.grouped,
    grouped_plan=plan.grouped_plan,
    decode_tile=plan.decode_tile,
)
