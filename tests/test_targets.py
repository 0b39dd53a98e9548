"""`load` with a target: structure, types, shardings and keys come back, or an error says why."""

from __future__ import annotations

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jentropy
from jentropy.checkpoints import structure
from jentropy.checkpoints.store import Store
from jentropy.errors import InputError
from jentropy.formats import ASYMMETRIC_INT4, MXFP4, NVFP4, UINT4, QuantizedTensor, quantize

from .conftest import same_tree


def quantised() -> dict:
    weights = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    return {
        name: QuantizedTensor(number_format=f, codes=quantize(weights, f))
        for name, f in {"a": MXFP4, "b": NVFP4, "c": MXFP4, "d": ASYMMETRIC_INT4}.items()
    }


@pytest.mark.parametrize("compressed", [False, True])
def test_quantised_weights_come_back_as_such(compressed, tmp_path, caplog):
    tree = {"w": quantised(), "n": [None, 3], "b": np.ones(2, np.float32)}
    jentropy.save(tmp_path / "t", jentropy.compress(tree) if compressed else tree)
    packed = jentropy.load(tmp_path / "t")
    back = jentropy.decompress(packed)
    assert not caplog.records
    assert back["n"] == [None, 3]
    for name, weight in tree["w"].items():
        assert isinstance(packed["w"][name], QuantizedTensor)
        assert back["w"][name].number_format == weight.number_format
        assert same_tree(back["w"][name].codes, dict(weight.codes))
    assert len(Store(tmp_path / "t").index.formats) == 3
    assert jentropy.verify(tmp_path / "t").tensors == 11
    assert same_tree(jentropy.decompress(jentropy.load(tmp_path / "t", target=tree)), tree)


def test_a_target_of_another_number_format_is_refused(tmp_path):
    jentropy.save(tmp_path / "t", quantised())
    target = quantised()
    target["a"] = dataclasses.replace(target["a"], number_format=MXFP4.with_element(UINT4))
    with pytest.raises(InputError, match="tensor 'a': number format of the target"):
        jentropy.load(tmp_path / "t", target=target)


def test_a_quantised_weight_that_is_none_is_neither_written_nor_read(tmp_path, monkeypatch):
    weights = quantised()
    wrong = {"w": [weights["a"], dataclasses.replace(weights["b"], codes=weights["a"].codes)]}
    with pytest.raises(InputError, match=r"tensor 'w.1': codes of NVFP4"):
        jentropy.save(tmp_path / "t", wrong)
    monkeypatch.setattr(structure, "_check", lambda *_: None)
    jentropy.save(tmp_path / "t", wrong)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"index: tensor 'w.1': codes of NVFP4"):
        jentropy.load(tmp_path / "t")


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(11)])

    def __call__(self, x):
        x = self.drop(self.first(x))
        for layer in self.rest:
            x = layer(x)
        return x


def train_state(seed: int) -> TrainState:
    key = jax.random.key(seed)
    tree = {"w": jax.random.normal(key, (3, 4)), "b": jnp.full(4, float(seed))}
    made = TrainState.create(apply_fn=None, params=tree, tx=optax.adamw(1e-3))
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        return made.apply_gradients(grads=jax.tree.map(jnp.ones_like, tree))


def test_a_module_comes_back_into_an_abstract_one(tmp_path):
    model = Model(nnx.Rngs(0))
    jentropy.save(tmp_path / "t", jentropy.compress(nnx.state(model)))
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Model(nnx.Rngs(1))))
    state = jentropy.decompress(jentropy.load(tmp_path / "t", target=abstract))
    assert isinstance(state, nnx.State)
    assert same_tree(state, nnx.state(model))
    other = nnx.merge(graph, state)
    x = jnp.ones((2, 4))
    np.testing.assert_array_equal(other(x), model(x))
    fresh = Model(nnx.Rngs(2))
    nnx.update(fresh, state)
    assert same_tree(nnx.state(fresh), state)


def test_a_train_state_comes_back_with_its_moments_in_place(tmp_path):
    state = train_state(1)
    jentropy.save(tmp_path / "t", state)
    for target in (train_state(2), jax.eval_shape(lambda: train_state(0))):
        back = jentropy.decompress(jentropy.load(tmp_path / "t", target=target))
        assert isinstance(back, TrainState)
        assert same_tree(back.params, state.params)
        assert same_tree(back.opt_state, state.opt_state)
        assert int(back.step) == 1


def test_without_a_target_it_says_what_becomes_of_the_structure(tmp_path, caplog):
    jentropy.save(tmp_path / "t", train_state(1))
    with caplog.at_level(logging.WARNING):
        tree = jentropy.load(tmp_path / "t")
    assert "TrainState" in caplog.text
    assert "target" in caplog.text
    assert list(tree) == ["step", "params", "opt_state"]  # as they were; JAX sorts them
    caplog.clear()
    jentropy.save(tmp_path / "plain", {"w": np.ones(2)})
    jentropy.load(tmp_path / "plain")
    assert caplog.text == ""


def test_what_orbax_stored_comes_back_into_a_target(tmp_path):
    import orbax.checkpoint as ocp

    state, config = train_state(1), {"layers": 2}
    with ocp.CheckpointManager(tmp_path / "src") as manager:
        manager.save(
            4,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config)
            ),
        )
    jentropy.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    target = {"state": jax.eval_shape(lambda: train_state(0))}  # JSON may be left out
    back = jentropy.decompress(jentropy.load(tmp_path / "dst", target=target))["state"]
    assert same_tree(back.params, state.params)
    assert same_tree(back.opt_state, state.opt_state)
    target["config"] = {"layers": 0}
    assert jentropy.load(tmp_path / "dst", target=target)["config"] == config


def test_types_and_shardings_are_the_targets(tmp_path):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    tree = {"a": np.arange(8.0, dtype=np.float32), "b": jnp.arange(3), "n": 3, "z": np.int32(4)}
    jentropy.save(tmp_path / "t", tree)
    target = {
        "a": jax.ShapeDtypeStruct((8,), np.float32, sharding=sharding),
        "b": np.zeros(3, np.int32),
        "n": jax.ShapeDtypeStruct((), np.int32),
        "z": 0,
    }
    back = jentropy.decompress(jentropy.load(tmp_path / "t", target=target))
    assert back["a"].sharding == sharding
    assert isinstance(back["b"], np.ndarray)
    assert isinstance(back["n"], jax.Array)
    assert (int(back["n"]), back["z"], type(back["z"])) == (3, 4, int)


TREE = {"w": np.ones((2, 3), np.float32), "k": jax.random.key(0), "n": 3, "s": "text"}
DIFFERENT = {
    "shape": ({"w": np.ones((3, 2), np.float32)}, r"'w'.*shape.*expected \[3, 2\], found \[2, 3\]"),
    "dtype": ({"w": np.ones((2, 3))}, r"'w'.*dtype.*expected float64, found float32"),
    "key": ({"k": jax.random.key(0, impl="rbg")}, r"'k'.*key<rbg>.*key<fry>"),
    "no key": ({"k": jnp.zeros(2, jnp.uint32)}, r"'k'.*uint32.*key<fry>"),
    "a key": ({"w": jax.random.key(0)}, r"'w'.*key<fry>.*float32"),
    "number": ({"n": 3.0}, r"'n'.*float.*int"),
    "too small": ({"n": np.ones((), np.float32)}, r"'n'.*float32.*int 3"),
    "text": ({"s": 3}, r"'s'.*int.*'text'"),
    "more": ({"more": np.ones(1)}, r"leaves of the target, found no 'more'"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_target_that_differs_is_an_error_by_leaf(name, tmp_path):
    changes, message = DIFFERENT[name]
    jentropy.save(tmp_path / "t", TREE)
    with pytest.raises(InputError, match=message):
        jentropy.load(tmp_path / "t", target={**TREE, **changes})


def test_a_target_that_lacks_a_leaf_is_an_error(tmp_path):
    jentropy.save(tmp_path / "t", TREE)
    with pytest.raises(InputError, match="also 'w'"):
        jentropy.load(tmp_path / "t", target={k: v for k, v in TREE.items() if k != "w"})
    with pytest.raises(InputError, match="both"):
        jentropy.load(tmp_path / "t", jax.devices()[0], target=TREE)


def test_a_sharding_may_be_one_a_prefix_or_a_struct(tmp_path):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    inner = {"w": np.ones((2, 3), np.float32), "n": np.int32(3), "k": jax.random.key(0)}
    tree = {"a": inner, "b": np.ones(2), "s": "text"}
    jentropy.save(tmp_path / "t", tree)
    struct = jax.ShapeDtypeStruct((2, 3), np.float32, sharding=rows)
    narrow = jax.ShapeDtypeStruct((3, 2), np.float32)
    for sharding in ({"a": rows, "b": None}, {"a": {"w": struct, "n": rows, "k": rows}, "b": None}):
        back = jentropy.decompress(jentropy.load(tmp_path / "t", sharding))
        assert back["a"]["w"].sharding == rows
        assert isinstance(back["b"], np.ndarray)
        assert back["a"]["n"].shape == ()
    wide = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    del tree["b"]
    jentropy.save(tmp_path / "u", tree)
    assert jentropy.decompress(jentropy.load(tmp_path / "u", wide))["a"]["w"].sharding == wide
    for sharding, message in (
        ({"a": rows}, "'b'.*found no such key"),
        ({"a": rows, "b": "x"}, "'b'.*found 'x'"),
        ({"a": rows, "b": None, "c": rows}, r"\['c'\], of none"),
        (
            {"a": {"w": narrow, "n": None, "k": None}, "b": None},
            r"'a\.w'",
        ),
    ):
        with pytest.raises(InputError, match=message):
            jentropy.load(tmp_path / "t", sharding)
    with pytest.raises(InputError, match="'b'"):
        jentropy.decompress(jentropy.load(tmp_path / "t", {"a": None, "b": wide}))
