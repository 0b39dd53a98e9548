"""Published methods, each a line.

Those in groups of 128 have a BF16 scale for each; sources stand beside the names.

    rtn             round to nearest, INT4 in groups of 128
    rtn-NAME        the same of every format and alphabet
    rht-nvint4      INT4 with NVFP4's scales, rotated in blocks of 16: arXiv 2510.25602
    stochastic      up or down at random, right on average
    nf4             quantiles of the normal distribution: QLoRA, arXiv 2305.14314
    powers-of-two   INQ, arXiv 1702.03044         apot     sums of two of them: arXiv 1909.13144
    posit8          posits with one exponent bit  bipolar  APT-LLM, arXiv 2508.19087
    fp6-llm         E3M2 per row: arXiv 2401.14112
    bitmod3, 4      groups choose a number beside a small float's: arXiv 2411.11745
    llm-fp4         exponent, mantissa and bias by search: arXiv 2310.16836
    four-over-six   NVFP4, blocks' largest becomes 6 or 4: arXiv 2512.02010
    q4-0, q8-0      ggml's, INT4 and INT8 in blocks of 32 with FP16 scales
    q2-k to q6-k    ggml's K-quants, scales fitted by the importance matrix
    ecsq            a uniform step, numbers that are worth their bits: Chou, Lookabaugh, Gray 1989
    gptq            INT4 in groups of 128, column after column: arXiv 2210.17323
    gptq-act-order  the same by falling E[x^2]
    adaround        up or down by gradient: arXiv 2004.10568
    omniquant       clipping by gradient: arXiv 2308.13137; -scales: factors of columns by gradient
    those that share bits out: `recipes_shared`; of vectors, rotations and zeros: `recipes_vectors`
    default         a uniform step, column after column, one slope over all tensors, entropy coded
"""

from __future__ import annotations

from jentropy.formats import (
    FORMATS,
    FP8_E4M3,
    FP16,
    INT4,
    INT4_GROUP,
    INT8_ROW,
    NVFP4,
    NVFP4_DIVISOR,
    Format,
)
from jentropy.formats.blocks import scale, tensor_scale_of_scales
from jentropy.formats.floats import FP8_E8M0
from jentropy.formats.integers import INT8

from .allocations import Slope
from .alphabets import (
    BestOf,
    Centroids,
    Integer,
    Minifloat,
    MixedTables,
    OfFormat,
    OfTable,
    SuperBlocks,
    Uniform,
)
from .recipe import Recipe
from .recipes_shared import SHARED
from .recipes_vectors import VECTORS
from .roundings import Learned, RateAware, Sequential, Stochastic
from .scales import LearnedClipping, LeastSquares, RmsStep, Search
from .transforms import Hadamard, LearnedScales

FP4S = tuple(Minifloat(exponent=e, mantissa=3 - e) for e in (1, 2, 3))
NVINT4 = Format(
    name="NVINT4", element=INT4, parameters=(scale(FP8_E4M3, (16,)), tensor_scale_of_scales())
)
MXINT8 = Format(name="MXINT8", element=INT8, parameters=(scale(FP8_E8M0, (32,)),))

RTN = {
    **{f"rtn-{name.lower()}": OfFormat(number_format=told) for name, told in FORMATS.items()},
    "rtn-nvfp4-divisor": OfFormat(number_format=NVFP4_DIVISOR),  # compressed-tensors' NVFP4
    "rtn-mxint8": OfFormat(number_format=MXINT8),
    "rtn-nvint4": OfFormat(number_format=NVINT4),
    **{f"rtn-int{bits}-g64": Integer(bits=bits, group=64) for bits in (2, 3, 5, 6, 7, 16)},
    "rtn-int3-asymmetric": Integer(bits=3, group=64, symmetric=False),
    "rtn-fp6-e2m3": Minifloat(exponent=2, mantissa=3, group=32, scale=FP8_E8M0),
    "rtn-fp6-e3m2": Minifloat(exponent=3, mantissa=2, group=32, scale=FP8_E8M0),
    "rtn-1-6-9": Minifloat(exponent=6, mantissa=9),
    "rtn-1-5-6": Minifloat(exponent=5, mantissa=6),
    "rtn-1-4-7": Minifloat(exponent=4, mantissa=7),
}
# Formats in which hardware multiplies.
AT_RUN_TIME = {
    "rtn-int8": "int8",
    "rtn-fp8_e4m3": "fp8",
    "rtn-mxfp4": "mxfp4",
    "rtn-nvfp4": "nvfp4",
}
HALVES = INT4_GROUP.with_parameter("scale", element=FP16, block=(32,))
BYTES = INT8_ROW.with_parameter("scale", element=FP16, block=(32,))
SEQUENTIAL, INTEGERS3 = Sequential(), Integer(bits=3, symmetric=False)
DENSE = tuple(2.0**i for i in range(4, 13))  # a posit is dense about 1, not about its largest

RECIPES: dict[str, Recipe] = {
    "rtn": Recipe(alphabet=OfFormat(number_format=INT4_GROUP)),
    **{
        name: Recipe(alphabet=alphabet, activations=AT_RUN_TIME.get(name))
        for name, alphabet in RTN.items()
    },
    "stochastic": Recipe(alphabet=OfFormat(number_format=INT4_GROUP), rounding=Stochastic()),
    "rht-nvint4": Recipe(alphabet=OfFormat(number_format=NVINT4), transforms=(Hadamard(block=16),)),
    "nf4": Recipe(alphabet=OfTable(table="NF", group=64)),
    "powers-of-two": Recipe(alphabet=OfTable(table="POT")),
    "apot": Recipe(alphabet=OfTable(table="APOT")),
    "posit8": Recipe(alphabet=OfTable(table="POSIT", bits=8), scales=Search(multipliers=DENSE)),
    "bipolar": Recipe(alphabet=OfTable(table="BIPOLAR", bits=3)),
    "fp6-llm": Recipe(alphabet=Minifloat(exponent=3, mantissa=2)),
    "bitmod3": Recipe(alphabet=MixedTables(bits=3)),
    "bitmod4": Recipe(alphabet=MixedTables(bits=4)),
    "llm-fp4": Recipe(alphabet=BestOf(alphabets=FP4S), scales=Search()),
    "four-over-six": Recipe(
        alphabet=OfFormat(number_format=NVFP4), scales=Search(multipliers=(1.0, 1.5))
    ),
    "q4-0": Recipe(alphabet=OfFormat(number_format=HALVES)),
    "q8-0": Recipe(alphabet=OfFormat(number_format=BYTES)),
    **{
        f"q{bits}-k": Recipe(alphabet=SuperBlocks(bits=bits), scales=LeastSquares())
        for bits in (2, 3, 4, 5, 6)
    },
    "ecsq": Recipe(alphabet=Centroids(), scales=RmsStep(), rounding=RateAware()),
    "gptq": Recipe(alphabet=OfFormat(number_format=INT4_GROUP), rounding=SEQUENTIAL),
    "gptq-act-order": Recipe(
        alphabet=OfFormat(number_format=INT4_GROUP), rounding=Sequential(act_order=True)
    ),
    "adaround": Recipe(alphabet=INTEGERS3, rounding=Learned()),
    "omniquant": Recipe(alphabet=INTEGERS3, scales=LearnedClipping()),
    "omniquant-scales": Recipe(alphabet=INTEGERS3, transforms=(LearnedScales(),)),
    "default": Recipe(
        alphabet=Uniform(), scales=RmsStep(), rounding=SEQUENTIAL, allocation=Slope()
    ),
    **SHARED,
    **VECTORS,
}
