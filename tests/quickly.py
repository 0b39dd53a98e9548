"""Programs for the CPU that compile in half the time: little optimised, by XLA's older emitters.

For tests of what is computed. Sums are the same but for their order; payloads of NaN in bfloat16
are lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
from jax._src import compiler

OPTIONS: dict[str, bool | int] = {"xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 11):  # newer ones have no other emitters
    OPTIONS["xla_cpu_use_fusion_emitters"] = False


@contextmanager
def compiled_quickly() -> Iterator[None]:
    usual = compiler.get_compile_options

    def quick(*args: Any, **options: Any) -> Any:
        found = usual(*args, **options)
        found.env_option_overrides = [*OPTIONS.items(), *found.env_option_overrides]
        return found

    jax.clear_caches()  # what is compared is compiled in one way
    jax.config.update("jax_disable_most_optimizations", True)
    with mock.patch.object(compiler, "get_compile_options", quick):
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
