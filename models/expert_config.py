"""What is known of a layer's experts, and of who takes which token."""

from __future__ import annotations

from dataclasses import dataclass

from jentropy.errors import InputError, UnsupportedError

# How a router's logits become scores: of all experts, or of those that were chosen by logits.
SCORINGS = ("softmax", "sigmoid", "softmax of the chosen")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """Experts: MLPs of which each token takes the few with the best scores.

    Raises:
      InputError: numbers that do not fit each other, a scoring that there is not.

    Example:
      >>> experts = ExpertsConfig(count=256, per_token=8, intermediate_size=2048, scoring="sigmoid",
      ...     correction=True, groups=8, kept_groups=4, best_of_group=2, normalized=True, scale=2.5)
      >>> experts.count // experts.groups  # of a group
      32
    """

    count: int
    per_token: int
    intermediate_size: int
    scoring: str = "softmax"  # one of SCORINGS
    correction: bool = False  # a bias on scores, for the choice alone (DeepSeek-V3)
    groups: int = 1  # experts lie in so many groups, of which a token takes some only
    kept_groups: int = 1
    best_of_group: int = 1  # scores of a group that are added to its own
    normalized: bool = False  # scores of the chosen are divided by their sum
    scale: float = 1.0  # of the scores
    logits_in_float32: bool = False  # else logits are rounded to the activations' dtype
    scores_in_float32: bool = True  # else scores are
    shared_size: int = 0  # intermediate size of one more expert, which takes every token
    bias: bool = False  # on the router and on all of the experts' projections
    limit: float | None = None  # of gate and up: `experts.clamped` is the activation (gpt-oss)
    alpha: float = 1.702  # of its sigmoid

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise UnsupportedError(
                "scoring of experts", expected=" or ".join(SCORINGS), found=self.scoring
            )
        kept = self.count // max(1, self.groups) * self.kept_groups
        for name, value, holds, expected in (
            ("groups of experts", self.groups, self.groups > 0, "1 or more"),
            ("experts", self.count, not self.count % max(1, self.groups), f"{self.groups} groups"),
            (
                "groups of experts that are kept",
                self.kept_groups,
                0 < self.kept_groups <= self.groups,
                f"1 to {self.groups}",
            ),
            (
                "scores of a group",
                self.best_of_group,
                self.groups == 1 or self.best_of_group * self.groups <= self.count,
                f"those of {self.count} experts in {self.groups} groups",
            ),
            ("experts of a token", self.per_token, 0 < self.per_token <= kept, f"1 to {kept}"),
            ("swiglu_limit", self.limit, self.limit is None or self.limit > 0, "above 0"),
        ):
            if not holds:
                raise InputError(name, expected=expected, found=value)
