"""Published methods of vectors, rotations, scales of columns, signs and zeros, each a line.

quip            two-sided rotation, two bits, column after column: arXiv 2307.13304
quip-sharp      the same with 2^16 points of E8: arXiv 2402.04396; -coded: with all of E8
qtip            the same with a trellis, entropy coded: arXiv 2406.11235
trellis         a trellis, column after column, one slope over all tensors: our own
kmeans          256 centres; product: 16 centres of each pair of columns: TPAMI 2011
aqlm            sums of two vectors of eight: arXiv 2401.06118
awq             scales of columns by search: arXiv 2306.00978
smoothquant     scales of columns by the ends of inputs and weights: arXiv 2211.10438
os-plus         shifts, and scales of outliers by search: arXiv 2304.09145
svdquant        a branch of low rank beside NVFP4: arXiv 2411.05007
lorc            MXFP4 and a matrix of low rank for its error: arXiv 2307.09782
arcquant        NVFP4, outlying columns twice: arXiv 2601.07475
comet           INT4, inputs of four and of eight bits: arXiv 2410.12168
d2quant         scales of rows and of columns, three bits: arXiv 2602.02546
rht-mxfp4       rotated in blocks of 32: arXiv 2502.20586
clamped-mxfp4   the largest hundredth apart: arXiv 2501.17116
billm           signs, twice in salient columns: arXiv 2402.04291
pb-llm          signs, a tenth of the weights apart in eight bits: arXiv 2310.00034
db-llm          sums of two binary numbers: arXiv 2402.11960
bitstack        signs times magnitudes of low rank, again and again: arXiv 2410.23918
bitnet          signs: arXiv 2310.11453; ternary: and zeros, arXiv 2402.17764
2:4             the larger two of four: arXiv 2104.08378; wanda: arXiv 2306.11695
sparsegpt       half of the weights, others making up for them: arXiv 2301.00774
"""

from __future__ import annotations

from jentropy.formats import FORMATS, INT4_GROUP, INT8_ROW, MXFP4, NVFP4

from .allocations import Slope
from .alphabets import (
    E8,
    Ball,
    Codebooks,
    Dual,
    Integer,
    LowRankCorrected,
    OfFormat,
    ResidualColumns,
    Salient,
    SignRanks,
    Signs,
    Trellis,
)
from .prunings import Magnitude, SparseGPT, Wanda
from .recipe import Recipe
from .roundings import Sequential
from .scales import AbsoluteMean, Search
from .transforms import (
    Balanced,
    Capped,
    Centred,
    Hadamard,
    LowRank,
    Outliers,
    Searched,
    Smooth,
    SortedColumns,
)

BOTH_SIDES = (Hadamard(), Hadamard(axis=0))
MX, NV = OfFormat(number_format=MXFP4), OfFormat(number_format=NVFP4)
INT4, INT8 = OfFormat(number_format=INT4_GROUP), OfFormat(number_format=INT8_ROW)
HALF = OfFormat(number_format=FORMATS["BF16"])

VECTORS: dict[str, Recipe] = {
    "quip": Recipe(
        alphabet=Integer(bits=2, group=0),
        scales=Search(),
        rounding=Sequential(),
        transforms=BOTH_SIDES,
    ),
    "quip-sharp": Recipe(alphabet=Ball(), transforms=BOTH_SIDES),
    "quip-sharp-coded": Recipe(alphabet=E8(), transforms=BOTH_SIDES),
    "qtip": Recipe(alphabet=Trellis(), transforms=BOTH_SIDES),
    "trellis": Recipe(alphabet=Trellis(), allocation=Slope()),
    "kmeans": Recipe(alphabet=Codebooks(dimensions=1, books=1)),
    "product": Recipe(alphabet=Codebooks(dimensions=2, books=1, bits=4, shared=False)),
    "aqlm": Recipe(alphabet=Codebooks()),
    "awq": Recipe(alphabet=INT4, transforms=(Searched(),)),
    "smoothquant": Recipe(alphabet=INT8, transforms=(Smooth(),), activations="int8"),
    "os-plus": Recipe(
        alphabet=INT8, transforms=(Centred(), Capped(number_format=INT8_ROW)), activations="int8"
    ),
    "svdquant": Recipe(alphabet=NV, transforms=(Smooth(), LowRank()), activations="nvfp4"),
    "lorc": Recipe(alphabet=LowRankCorrected(alphabet=MX)),
    "arcquant": Recipe(
        alphabet=ResidualColumns(alphabet=NV),
        transforms=(SortedColumns(by_largest=True),),
        activations="nvfp4-residual",
    ),
    "comet": Recipe(
        alphabet=INT4, transforms=(SortedColumns(by_largest=True),), activations="int4-int8"
    ),
    "d2quant": Recipe(alphabet=Integer(bits=3), rounding=Sequential(), transforms=(Balanced(),)),
    "rht-mxfp4": Recipe(alphabet=MX, transforms=(Hadamard(block=32),), activations="mxfp4"),
    "clamped-mxfp4": Recipe(alphabet=MX, transforms=(Outliers(),)),
    "billm": Recipe(alphabet=Salient()),
    "pb-llm": Recipe(
        alphabet=Signs(group=128),
        scales=AbsoluteMean(),
        transforms=(Outliers(share=0.1, by_loss=True, clamped=False, exponent=3),),
    ),
    "db-llm": Recipe(alphabet=Dual()),
    "bitstack": Recipe(alphabet=SignRanks()),
    "bitnet": Recipe(alphabet=Signs(), scales=AbsoluteMean()),
    "ternary": Recipe(alphabet=Signs(ternary=True), scales=AbsoluteMean()),
    "2:4": Recipe(alphabet=HALF, pruning=Magnitude(pattern=(2, 4))),
    "wanda": Recipe(alphabet=HALF, pruning=Wanda()),
    "sparsegpt": Recipe(alphabet=HALF, pruning=SparseGPT()),
}
