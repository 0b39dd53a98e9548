"""The sum over keys against its formula, at once and by blocks, and what it takes of memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jentropy import modes
from jentropy.models import attending
from jentropy.models.attending import attend
from jentropy.models.caches import Turn
from jentropy.models.config import DecoderConfig, RopeConfig
from jentropy.models.decoder import Decoder
from jentropy.models.kinds import take

BATCH, TIME, SLOTS, HEADS, KV_HEADS, WIDTH, VALUES = 2, 19, 23, 4, 2, 8, 6
RNG = np.random.default_rng(0)
Q, K, V = (
    jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    for shape in (
        (BATCH, HEADS, TIME, WIDTH),
        (BATCH, KV_HEADS, SLOTS, WIDTH),
        (BATCH, KV_HEADS, SLOTS, VALUES),
    )
)
SINKS = jnp.asarray([0.5, -1.0, 3.0, 0.0])
ROWS = jnp.arange(TIME) + 4
ORDER = jnp.arange(SLOTS)
# Of each sequence: one that begins later, and a ring whose slots lie in another order, two empty.
RAGGED = jnp.stack((ROWS, ROWS - 4))
RING = jnp.stack((jnp.roll(ORDER, 7), jnp.where(ORDER < 2, -1, ORDER - 2)))
CASES = {
    "causal": {},
    "window and cap": {"window": jnp.int32(5), "soft_cap": 0.7},
    "ragged": {
        "positions": RAGGED,
        "slots": RING,
        "window": 9,
        "soft_cap": 1.5,
        "sinks": SINKS,
    },
}


def told(case) -> dict:
    return {"scale": 0.3, "positions": ROWS, "slots": ORDER, **CASES[case]}


def formula(q, k, v, scale, positions, slots, window=None, soft_cap=None, sinks=None):
    q, k, v = (np.asarray(each, np.float64) for each in (q, k, v))
    positions = np.broadcast_to(positions, (len(q), q.shape[2]))
    slots = np.broadcast_to(slots, (len(k), k.shape[2]))
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, h, t in np.ndindex(q.shape[:3]):
        before = positions[b, t] - slots[b]
        seen = (before >= 0) & (slots[b] >= 0) & (before < (window or 1 << 30))
        kv = h * k.shape[1] // q.shape[1]
        scores = scale * k[b, kv, seen] @ q[b, h, t]
        if soft_cap:
            scores = soft_cap * np.tanh(scores / soft_cap)
        weights = np.exp(scores)
        rest = 0 if sinks is None else np.exp(float(sinks[h]))
        out[b, h, t] = weights @ v[b, kv, seen] / max(weights.sum() + rest, 1e-30)
    return out


@pytest.fixture
def by_blocks(monkeypatch):
    for name, size in (("AT_ONCE", 0), ("QUERIES", 8), ("KEYS", 5)):
        monkeypatch.setattr(attending, name, size)


@modes.standard
def derivatives(case):
    def loss(q, k, v, sinks):
        more = {"sinks": sinks} if "sinks" in CASES[case] else {}
        return jnp.sin(3 * attend(q, k, v, **{**told(case), **more})).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(Q, K, V, SINKS)


@pytest.mark.parametrize("case", CASES)
def test_attention_is_its_formula(case):
    with modes.standard_modes():
        found = attend(Q, K, V, **told(case))
    np.testing.assert_allclose(found, formula(Q, K, V, **told(case)), atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_blocks_are_the_formula_and_its_derivatives(case, by_blocks, monkeypatch):
    with modes.standard_modes():
        found = jax.jit(lambda: attend(Q, K, V, **told(case)))()
    np.testing.assert_allclose(found, formula(Q, K, V, **told(case)), atol=2e-6)
    ours = derivatives(case)
    monkeypatch.setattr(attending, "AT_ONCE", 1 << 22)
    for one, expected in zip(ours, derivatives(case), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-5)


def test_blocks_that_no_query_sees_are_passed_over(by_blocks):
    """NaN in what is multiplied, be it by weights of 0, would show."""
    hidden = jnp.where(((ORDER >= 5) & (ORDER < 10))[:, None], V, jnp.nan)
    with modes.standard_modes():
        out = attend(
            Q[:, :, :2], K, hidden, scale=1.0, positions=jnp.array([7, 8]), slots=ORDER, window=3
        )
    assert np.isfinite(out).all()


@pytest.mark.parametrize("shape", [(8, 2, 4, 1, 64, 64), (8, 8, 2, 1, 64, 1000)])
def test_some_heads_and_sequences_are_the_bits_of_all(shape):
    """Of both, XLA for CPU chose other products and sums by how many there are."""
    batch, kv_heads, group, time, width, slots = shape
    rng = np.random.default_rng(1)
    q, k, v = (
        jnp.asarray(rng.standard_normal((batch, kv_heads * n, *of)), jnp.float32)
        for n, of in ((group, (time, width)), (1, (slots, width)), (1, (slots, width)))
    )
    order = {"positions": jnp.array([slots - 1]), "slots": jnp.arange(slots)}
    run = jax.jit(modes.standard(lambda *given: attend(*given, scale=0.1, **order)))
    whole = np.asarray(run(q, k, v))
    for some in ((batch, 1), (1, kv_heads), (1, 1)):
        parts = (each[: some[0], : some[1] * n] for each, n in ((q, group), (k, 1), (v, 1)))
        of = whole[: some[0], : some[1] * group]
        np.testing.assert_array_equal(run(*parts).view(np.uint32), of.view(np.uint32))


def layer_of_llama(**changes):
    """A layer of Llama-3.2-1B over 8,192 tokens, and its arguments without numbers."""
    sizes = {
        "vocab_size": 128,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_layers": 1,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope": RopeConfig(theta=5e5),
        "tie_word_embeddings": True,
    }
    told = {name: tuple(v) if isinstance(v, list) else v for name, v in changes.items()}
    config = DecoderConfig(**{**sizes, **told})
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), state)
    pairs = config.head_dim // 2

    @modes.standard
    def layer(state, x, cache):
        turn = Turn(jnp.int32(0), jnp.int32(0), jnp.ones(pairs), jnp.float32(1), jnp.int32(1024))
        return take(nnx.merge(graph, state).layers[0], jnp.int32(0))(x, cache, turn)

    (cache,) = jax.eval_shape(lambda: nnx.merge(graph, state).new_cache(1, 8192))
    return layer, (state, jax.ShapeDtypeStruct((1, 8192, 2048), jnp.bfloat16), cache)


def test_a_layer_takes_no_memory_for_the_square_of_a_prompt():
    """Which took 26 GB with all scores in memory."""
    layer, arguments = layer_of_llama()
    compiled = jax.jit(layer, donate_argnums=2).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 1 << 30
