"""Generation: sampling against transformers, programs, batches of any lengths, the step API."""

from __future__ import annotations

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jentropy import models, modes
from jentropy.errors import InputError
from jentropy.models import Sampling, state
from jentropy.models.sampling import draw, processed, sampling_of

from .conftest import HERE, same_tree
from .test_layer_stacks import CONFIG

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 64, n).tolist() for n in (3, 21, 9)]
WARM = {"temperature": 0.9, "top_k": 20, "top_p": 0.9}


@pytest.fixture(scope="module")
def model():
    """A layer that slides and one that does not; text that it makes depends on the prompt."""
    config = dataclasses.replace(CONFIG, num_layers=2, windows=(7, None))
    made = models.Decoder(config, compute_dtype=jnp.float32, rngs=nnx.Rngs(0))
    louder = jax.tree.map(lambda w: 8 * w if w.ndim > 1 else w, nnx.state(made))
    nnx.update(made, louder)
    return made


@pytest.fixture
def small_chunks(monkeypatch):
    for name, size in (("CHUNK", 8), ("SHORTEST", 4), ("CAPACITY", 48)):
        monkeypatch.setattr(state, name, size)


def compiled(caplog) -> list[str]:
    """Of what XLA made programs: functions of generation."""
    told = [record.getMessage() for record in caplog.records]
    names = ("jit(read_chunk)", "jit(advance_in_place)")
    return [
        text for text in told if "Finished XLA compilation" in text and text.split()[4] in names
    ]


def logits(model, ids) -> np.ndarray:
    return np.asarray(nnx.jit(lambda m, i: m(i))(model, jnp.asarray(ids, jnp.int32)))


GOLDEN = json.loads((HERE / "fixtures" / "sampling.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: " ".join(case["sampling"]))
def test_sampling_is_transformers(case):
    scores, ids = np.float32(GOLDEN["logits"]), np.array(GOLDEN["input_ids"])
    came = np.zeros(scores.shape, bool)
    np.put_along_axis(came, ids, True, axis=1)
    numbers = Sampling(**case["sampling"]).numbers()
    with modes.standard_modes():
        found = processed(jnp.asarray(scores), numbers, jnp.asarray(came))
    expected = np.float32([[-np.inf if v is None else v for v in row] for row in case["processed"]])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_draws_have_their_shares_and_their_own_seeds():
    scores = jnp.log(jnp.array([0.5, 0.3, 0.2]))[None].repeat(4000, 0)
    seeds, at = jnp.arange(4000, dtype=jnp.uint32), jnp.zeros(4000, jnp.int32)
    with modes.standard_modes():
        drawn = np.asarray(draw(scores, {"temperature": 1.0}, seeds, at))
        again = draw(scores[:9], {"temperature": 1.0}, seeds[7:16], at[:9])
        later = np.asarray(draw(scores, {"temperature": 1.0}, seeds, at + 1))
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.5, 0.3, 0.2], atol=0.03)
    np.testing.assert_array_equal(again, drawn[7:16])
    assert (later != drawn).mean() > 0.4


def test_what_a_checkpoint_says_of_sampling():
    told = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
    assert sampling_of(told) == Sampling(temperature=0.6, top_p=0.95, top_k=50)
    assert sampling_of(told, temperature=0.0, top_k=None).numbers() == {}
    assert sampling_of({**told, "do_sample": False, "repetition_penalty": 1.1}) == Sampling(
        repetition_penalty=1.1
    )
    with pytest.raises(InputError, match=r"generation_config\.json: top_p: expected a number"):
        sampling_of({"do_sample": True, "top_p": "high"})
    for wrong in ({"top_p": 1.5}, {"min_p": -0.1}, {"repetition_penalty": 0.0}, {"top_k": -1}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}: expected"):
            Sampling(**wrong)


@pytest.mark.parametrize("options", [{}, WARM])
def test_a_sequence_is_the_same_in_any_batch(model, options, small_chunks):
    seeds = [3, 2**32 - 1, 7]
    out = models.generate(model, PROMPTS, max_new_tokens=12, seed=seeds, **options)
    assert out.shape == (3, 33)
    for row, prompt, seed in zip(np.asarray(out), PROMPTS, seeds, strict=True):
        alone = models.generate(model, [prompt], max_new_tokens=12, seed=seed, **options)
        np.testing.assert_array_equal(row[: len(prompt) + 12], alone[0])
        assert (row[len(prompt) + 12 :] == 0).all()
    if not options:
        following = logits(model, out[1:2, :-1]).argmax(-1)  # the longest, by no chunks
        np.testing.assert_array_equal(following[0, 20:], out[1, 21:])


def test_chunks_give_the_logits_of_the_whole(model, small_chunks):
    found = models.prefill(model, PROMPTS)
    assert found.lengths.tolist() == [3, 21, 9]
    for row, prompt in zip(found.logits, PROMPTS, strict=True):
        np.testing.assert_allclose(row, logits(model, [prompt])[0, -1], atol=2e-5)


def test_a_loop_of_ones_own(model):
    sampling = Sampling(**WARM, repetition_penalty=1.2)
    begun = [models.prefill(model, PROMPTS, seed=[1, 2, 3]) for _ in range(3)]
    mine, whole, streamed = begun
    for _ in range(6):
        mine = models.step(model, mine, models.sample(mine, sampling))
    whole = models.advance(model, whole, 6, sampling)
    for last in models.stream(model, streamed, 6, sampling):
        streamed = last
    assert same_tree(mine, whole)
    assert same_tree(streamed, whole)
    copy = jax.tree.map(jnp.copy, whole)
    forced = models.step(model, copy, np.array([5, 6, 7]))
    assert [row[n] for row, n in zip(forced.tokens.tolist(), whole.lengths, strict=True)] == [
        5,
        6,
        7,
    ]


def test_logprobs_are_the_models_own(model):
    made = models.advance(model, models.prefill(model, PROMPTS[1:2]), 5, Sampling(**WARM))
    tokens, logprobs = np.asarray(made.tokens)[0], np.asarray(made.logprobs)[0]
    expected = jax.nn.log_softmax(logits(model, tokens[None, :25])[0, 20:])
    expected = np.take_along_axis(np.asarray(expected), tokens[21:26, None], axis=1)[:, 0]
    np.testing.assert_allclose(logprobs[21:26], expected, atol=1e-4)
    assert not logprobs[:21].any()
    assert not logprobs[26:].any()


def test_a_turn_goes_on_where_the_last_one_ended(model, small_chunks):
    """Behind sequences that ended at different places, in a cache that grows on the way."""
    first = models.advance(model, models.prefill(model, PROMPTS), 4)
    assert first.capacity == 48
    before = [row[:n] for row, n in zip(np.asarray(first.tokens), first.lengths, strict=True)]
    turns = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [4], [6, 6]]
    second = models.prefill(model, turns, state=first, capacity=49)
    assert second.capacity == 72
    second = models.advance(model, second, 5)
    for i, (start, turn) in enumerate(zip(before, turns, strict=True)):
        prompt = [*start.tolist(), *turn]
        alone = models.generate(model, [prompt], max_new_tokens=5)[0]
        np.testing.assert_array_equal(second.tokens[i, : second.lengths[i]], alone)


def test_stop_tokens_end_their_own_sequence(model):
    free = np.asarray(models.generate(model, PROMPTS, max_new_tokens=12))
    stop = int(free[1, 25])
    made = models.advance(model, models.prefill(model, PROMPTS), 12, stop_tokens=[stop])
    for row, n, prompt, expected in zip(
        np.asarray(made.tokens), made.lengths.tolist(), PROMPTS, free, strict=True
    ):
        new = expected[len(prompt) : len(prompt) + 12].tolist()
        kept = new[: new.index(stop) + 1] if stop in new else new
        assert row[len(prompt) : n].tolist() == kept
    assert made.done[1]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "not empty"),
        ([[1], []], {}, "not empty"),
        ([[1], [64]], {}, "expected 0 to 63, found up to 64"),
        ([[0.5]], {}, "expected 0 to 63, found float64"),
        ([[1], [2]], {"seed": [1]}, "or 2 of them"),
        ([[1] * 2049], {}, "at most 2048 positions"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_prompts_that_cannot_be_read_are_refused(prompts, options, message, model):
    with pytest.raises(InputError, match=message):
        models.prefill(model, prompts, **options)


def test_a_state_of_other_sequences_is_refused(model):
    with pytest.raises(InputError, match="expected 1, as in the state, found 2"):
        models.prefill(model, [[1], [2]], state=models.prefill(model, [[1]]))


def test_programs_are_few(model, caplog):
    """None for a prompt's length, a number of tokens or of the sampling."""
    jax.clear_caches()
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        for length, new in ((1, 9), (5, 2), (16, 60), (11, 31), (3, 1)):
            models.generate(model, [PROMPTS[1][:length] or [1]], max_new_tokens=new)
        assert len(compiled(caplog)) == 2
        for temperature, seed in ((0.5, 1), (0.7, 3)):
            models.generate(model, [[5, 6]], max_new_tokens=3, temperature=temperature, seed=seed)
        assert len(compiled(caplog)) == 3
        models.generate(model, [PROMPTS[1]], max_new_tokens=2)  # a longer chunk
        assert len(compiled(caplog)) == 4
