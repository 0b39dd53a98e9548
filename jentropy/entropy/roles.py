"""What a weight does in a transformer, from its name.

Names are those of Hugging Face, GGUF, Mistral, Flax, MaxText and GPT-2. What several roles are
fused in is named by all of them: `qkv`, `gate_up`; `kv` has the latents of keys and values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

OTHER = "other"
# The first that is found in a name says the role. A blank stands for any of `. / _ -`, a colon for
# `.` or `/` alone. Parts of an expert are experts; shared experts are dense layers.
ROLES: tuple[tuple[str, str], ...] = (
    (OTHER, r"\bbias(es)?$|inv freq|\brope\b|sinks?$|position ids|batch normalization"),
    ("norm", r"norm|\bln( f| \d|\b)"),
    ("router", r"router|gate inp\b|correction bias|(mlp|moe|ffn|feed forward):gate(:|$)"),
    ("expert", r"(?<!shared )\bexperts?\b(?! gate$)|\bexps\b|moe block w[io]"),
    ("o", r"\bo proj|\bwo( [ab])?\b(?<!mlp wo)|attn out|attention (output|out|dense)\b|out proj"
          r"|attn c proj\b|\bto out\b"),
    ("head", r"\b(lm )?head\b|\boutput:(weight|kernel)$|^output$|embed out|logits dense|unembed"),
    ("embedding", r"embed|\bwte\b|\bwpe\b|token embd"),
    ("qkv", r"qkv|\bc attn\b|query key value|\bw pack\b"),
    ("gate_up", r"gate up|gate and up"),
    ("kv", r"\bkv( [ab])?\b|\bwkv( [ab])?\b"),
    ("q", r"\bq( [ab])? proj|\bwq( [ab])?\b|\battn q( [ab])?\b|\bquery\b|\bto q\b"),
    ("k", r"\bk proj|\bwk\b|\battn k\b|\bkey\b|\bto k\b"),
    ("v", r"\bv proj|\bwv\b|\battn v\b|\bvalue\b|\bto v\b"),
    ("gate", r"gate proj|ffn gate|\bwi 0\b|\bw1\b"),
    ("up", r"up proj|ffn up|\bwi( 1)?\b|\bw3\b|c fc\b|\bfc1\b|intermediate dense|h to 4h"),
    ("down", r"down proj|ffn down|\bmlp wo\b|\bw2\b|mlp c proj|\bfc2\b|output dense|4h to h"),
)  # fmt: skip
_PATTERNS = [
    (name, re.compile(pattern.replace(" ", "[ .]").replace(":", "[.]"))) for name, pattern in ROLES
]
_LAYER = re.compile(r"\b(?:layers?|h|blk|blocks?)[ .](\d+)\b")
_EXPERT = re.compile(r"\bexperts?[ .](\d+)\b")
_DOTS, _BLANKS = re.compile(r"[./\[\]'\"]+"), re.compile(r"[_-]+")
NAMES = tuple(dict.fromkeys((*(name for name, _ in ROLES if name != OTHER), OTHER)))


@dataclass(frozen=True, slots=True)
class Role:
    """What a weight does, and where.

    Attributes:
      name: one of `NAMES`.
      layer: number of the layer; None: it is in none, or a stack of all.
      expert: number of the expert; None: it is of none, or a stack of all.

    Example:
      >>> Role("q", layer=3).to_json()
      {'role': 'q', 'layer': 3}
    """

    name: str
    layer: int | None = None
    expert: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        places = {"layer": self.layer, "expert": self.expert}
        return {"role": self.name, **{k: at for k, at in places.items() if at is not None}}


@lru_cache(1 << 10)  # a report asks twice
def role_of(name: str) -> Role:
    """The role that a name tells of.

    Args:
      name: of a weight, in a checkpoint or a pytree.

    Returns:
      Its `Role`; `other` where the name is of none that is known.

    Example:
      >>> role_of("model.layers.3.mlp.experts.17.down_proj.weight")
      Role(name='expert', layer=3, expert=17)
      >>> role_of("params/decoder/layers/mlp/wi_0/kernel").name, role_of("blk.0.attn_q.weight").name
      ('gate', 'q')
    """
    words = _BLANKS.sub(" ", _DOTS.sub(".", name.lower())).strip(" .")
    layer, expert = _LAYER.search(words), _EXPERT.search(words)
    role = next((role for role, pattern in _PATTERNS if pattern.search(words)), OTHER)
    return Role(
        role,
        None if layer is None else int(layer[1]),
        None if expert is None else int(expert[1]),
    )
