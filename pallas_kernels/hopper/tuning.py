"""Tuned configurations of the GPU kernels, JSON by device kind in `tuned/`.

    {"device_kind": "NVIDIA H200", "jax": ..., "date": ...,
     "layouts": {"gpu_window12": {
       "fused_rows": rows of x up to which the fused kernel is the faster,
       "products": [{"m": ..., "k": ..., "n": ...,
                     "tile_k": ..., "stages": ..., "rounds": ..., "height": ...}]}}}

Layouts of many formats have an entry for each element and group, "gpu_scaled FP4_E2M1 32".
`m` is padded to 8, `k` and `n` to 128. Products that are not there run as estimated: see
`plan.make_plan`. `jentropy bench --suite matmul --tune` writes such a file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from jentropy.errors import CorruptError
from jentropy.pallas_kernels.targets import Gpu
from jentropy.pallas_kernels.tiles import ceil_to

from .plan import LEAST_STAGES, ROWS, TILE_N, TILES_K, UNIT, Config

Key = tuple[int, int, int]  # m, k, n, padded


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What is tuned of a layout on a kind of device."""

    fused_rows: int | None = None
    products: Mapping[Key, Config] = field(default_factory=dict)

    def target(self, target: Gpu) -> Gpu:
        """The target with what was measured instead of what was estimated."""
        return target if self.fused_rows is None else replace(target, fused_rows=self.fused_rows)

    def config(self, m: int, k: int, n: int) -> Config | None:
        """Of one product, if it was tuned."""
        return self.products.get(key_of(m, k, n))


def key_of(m: int, k: int, n: int) -> Key:
    """Under which a product is found."""
    return ceil_to(m, ROWS), ceil_to(k, UNIT), ceil_to(n, TILE_N)


def path_of(device_kind: str) -> Path:
    """The file of a kind of device, there or not."""
    name = device_kind.replace(" ", "_") + ".json"
    return Path(str(resources.files("jentropy.pallas_kernels") / "tuned" / name))


@functools.cache
def load(device_kind: str, layout: str) -> Tuned:
    """What is tuned; nothing where no file is.

    Raises:
      CorruptError: a malformed file.
    """
    path = path_of(device_kind)
    if not path.is_file():
        return Tuned()
    try:
        tuned = json.loads(path.read_text())["layouts"].get(layout, {})
        products = {key_of(p["m"], p["k"], p["n"]): _config(p) for p in tuned.get("products", ())}
        return Tuned(fused_rows=tuned.get("fused_rows"), products=products)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            "tuned configurations", file=path, expected=__doc__, found=repr(error)
        ) from error


def _config(product: Mapping[str, Any]) -> Config:
    tile_k, stages, rounds = product["tile_k"], product["stages"], product["rounds"]
    if tile_k not in TILES_K or not isinstance(stages, int) or stages < 1:
        raise ValueError(f"tile_k {tile_k} and stages {stages}")
    if product["k"] % tile_k or not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"tile_k {tile_k} of k {product['k']}, rounds {rounds}")
    height = product["height"]
    if height not in LEAST_STAGES or product["n"] % (height * TILE_N):
        raise ValueError(f"height {height} of n {product['n']}")
    return Config(tile_k=tile_k, stages=stages, rounds=rounds, height=height)


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a file that `load` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    load.cache_clear()
