"""The kernels of BF16 on Hopper."""

from __future__ import annotations

from jentropy.pallas_kernels.hopper.record import kernels

from . import decode, matmul, plan

KERNELS = kernels(plan.plan, matmul.source, decode.decode)
