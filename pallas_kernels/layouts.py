"""Every resident layout.

To add one: a folder here with `layout.py`, whose `LAYOUT` says what it has (see `layout.Layout`),
and a line below, before others of its backend that hold the same formats. Its kernels stand beside
it, in `plan.py`, `matmul.py` and `decode.py`, and `kernels.py` names them. Formats that it is
tested, timed and budgeted with have lines in `variants.VARIANTS`.
"""

from __future__ import annotations

from .gpu_scaled.layout import LAYOUT as GPU_SCALED
from .gpu_window12.layout import LAYOUT as GPU_WINDOW12
from .layout import Layout
from .reference_codes.layout import LAYOUT as REFERENCE_CODES
from .reference_window12.layout import LAYOUT as REFERENCE_WINDOW12
from .tpu_mxfp4.layout import LAYOUT as TPU_MXFP4
from .tpu_nvfp4.layout import LAYOUT as TPU_NVFP4
from .tpu_scaled.layout import LAYOUT as TPU_SCALED
from .tpu_window12.layout import LAYOUT as TPU_WINDOW12

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        REFERENCE_WINDOW12,
        REFERENCE_CODES,
        TPU_WINDOW12,
        TPU_SCALED,
        TPU_MXFP4,
        TPU_NVFP4,
        GPU_WINDOW12,
        GPU_SCALED,
    )
}
BACKENDS = ("reference", "tpu", "gpu")
