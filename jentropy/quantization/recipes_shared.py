"""Published methods that share bits out, a line each.

baq            one slope by the traces of E[x x^T]: arXiv 2506.05664
hawq           by the largest eigenvalues, rounded to nearest: arXiv 1905.03696
hawq-v3        4 or 8 bits for each matrix by an exact program: arXiv 2011.10680
kl-program     the same of 2 to 8 bits, by the KL that was measured of each matrix alone
entropy-slope  one slope by the weights' entropy power: QuantMCU, arXiv 2401.11018
q4-k-m         K-quants of 4 bits, of 6 where it matters, by the importance matrix: llama.cpp
slim-llm       groups of one bit more and one less, column after column: arXiv 2405.14917
"""

from __future__ import annotations

from .allocations import ByRole, Knapsack, Slope
from .alphabets import Integer, SuperBlocks, Uniform
from .recipe import Recipe
from .roundings import Sequential
from .scales import LeastSquares, RmsStep, SalientGroups

SEQUENTIAL = Sequential()
WIDTHS = tuple(Integer(bits=bits, group=64) for bits in (2, 3, 4, 5, 6, 8))

SHARED: dict[str, Recipe] = {
    "baq": Recipe(
        alphabet=Uniform(),
        scales=RmsStep(),
        rounding=SEQUENTIAL,
        allocation=Slope(sensitivity="trace"),
    ),
    "hawq": Recipe(alphabet=Uniform(), scales=RmsStep(), allocation=Slope(sensitivity="eigen")),
    "hawq-v3": Recipe(
        alphabet=Integer(bits=4),
        allocation=Knapsack(menu=(Integer(bits=4), Integer(bits=8)), bits=5.0),
    ),
    "kl-program": Recipe(
        alphabet=Integer(bits=4),
        rounding=SEQUENTIAL,
        allocation=Knapsack(menu=WIDTHS, sensitivity="kl", bits=3.0),
    ),
    "entropy-slope": Recipe(
        alphabet=Uniform(),
        scales=RmsStep(),
        rounding=SEQUENTIAL,
        allocation=Slope(sensitivity="entropy"),
    ),
    "q4-k-m": Recipe(
        alphabet=SuperBlocks(bits=4),
        scales=LeastSquares(),
        allocation=ByRole(better=SuperBlocks(bits=6)),
    ),
    "slim-llm": Recipe(
        alphabet=Integer(bits=4, group=64), scales=SalientGroups(), rounding=SEQUENTIAL
    ),
}
