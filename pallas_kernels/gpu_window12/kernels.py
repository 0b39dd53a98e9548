"""The kernels of BF16 on Hopper, in one record."""

from __future__ import annotations

from functools import partial

from jentropy.pallas_kernels.hopper import groups
from jentropy.pallas_kernels.layout import Kernels

from . import decode, matmul, plan

KERNELS = Kernels(
    plan=plan.plan,
    multiply=matmul.multiply,
    decode=decode.decode,
    grouped=matmul.grouped,
    grouped_plan=partial(groups.plan, plan_of=plan.plan),
)
