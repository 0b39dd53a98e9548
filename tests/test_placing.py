"""Where `load` puts tensors: one sharding, trees of them, and what does not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import jentropy
from jentropy.errors import InputError

TREE = {
    "params": {"w": np.ones((8, 4), np.float32), "b": np.ones(4, np.float32)},
    "moments": [np.zeros(2, np.int8), np.zeros((2, 2), np.int8)],
    "step": np.int32(7),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("placing") / "tree"
    jentropy.save(path, jentropy.compress(TREE))
    return path


def mesh(size: int = 1):
    return jax.sharding.AbstractMesh((size,), ("x",)) if size > 1 else jax.make_mesh((1,), ("x",))


def split(*axes, size: int = 1) -> NamedSharding:
    return NamedSharding(mesh(size), PartitionSpec(*axes))


def placed(saved, sharding):
    back = jentropy.decompress(jentropy.load(saved, sharding))
    jax.tree.map(np.testing.assert_array_equal, back, TREE)
    return back


def test_one_sharding_takes_scalars_too(saved):
    back = placed(saved, split("x"))
    assert back["params"]["w"].sharding == split("x")
    assert back["step"].sharding == split()
    assert back["moments"][0].sharding == split("x")


def test_a_sharding_stands_for_all_below_it(saved):
    one = SingleDeviceSharding(jax.devices()[0])
    back = placed(saved, {"params": split("x"), "moments": [one, None], "step": None})
    assert back["params"]["b"].sharding == split("x")
    assert back["moments"][0].sharding == one
    assert isinstance(back["moments"][1], np.ndarray)
    assert isinstance(back["step"], np.generic | np.ndarray)


def test_what_is_no_tensor_and_what_is_a_key(tmp_path):
    keys = jax.random.split(jax.random.key(0), 4)
    tree = {"keys": keys, "one": keys[0], "n": 3, "name": "text", "none": None}
    jentropy.save(tmp_path / "t", tree)
    rules = jax.tree.map(lambda _: split("x"), tree)
    struct = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=split("x"))
    for sharding in (split("x"), rules, rules | {"keys": struct}):
        back = jentropy.decompress(jentropy.load(tmp_path / "t", sharding))
        assert (back["n"], back["name"]) == (3, "text")
        assert back["keys"].sharding == split("x")
        assert back["one"].sharding == split()
        assert jnp.array_equal(jax.random.key_data(back["keys"]), jax.random.key_data(keys))
    with pytest.raises(InputError, match="'keys'"):
        jentropy.load(tmp_path / "t", split(None, "x"))


def test_abstract_arrays_are_shardings(saved):
    def abstract(leaf, sharding=None):
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    tree = jax.tree.map(abstract, TREE)
    tree["params"]["w"] = abstract(TREE["params"]["w"], split(None, "x"))
    tree["params"]["b"] = jnp.ones(4)
    back = placed(saved, tree)
    assert back["params"]["w"].sharding == split(None, "x")
    assert back["params"]["b"].sharding == tree["params"]["b"].sharding
    tree["params"]["w"] = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)
    with pytest.raises(InputError, match=r"'params\.w'.*bfloat16.*float32"):
        jentropy.load(saved, tree)


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        (split("x", size=3), r"tensor 'moments\.0': sharding: .* \[2\]"),
        ({"params": split("x", size=3), "moments": None, "step": None}, r"'params\.b'"),
        ({"params": split(None, "x"), "moments": None, "step": None}, r"'params\.b'"),
        ({"params": {"w": split("x")}, "moments": None, "step": None}, r"'params\.b'.*no such key"),
        ({"params": None, "moments": None}, r"'step'.*no such key"),
        ({"params": None, "moments": None, "step": None, "other": split()}, r"other.*of none"),
        ({"params": PartitionSpec("x"), "moments": None, "step": None}, r"'params\.b'.*found P"),
        ("x", r"'moments\.0'.*'x'"),
        (split(size=2), r"'moments\.0'.*AbstractMesh"),
    ],
)
def test_shardings_that_do_not_fit_are_refused_by_name(saved, sharding, message):
    with pytest.raises(InputError, match=message):
        jentropy.load(saved, sharding)


def test_weights_of_a_directory_are_placed_by_name(fixtures, tmp_path):
    jentropy.compress_checkpoint(fixtures / "llama_fp16", tmp_path / "packed")
    sharding = dict.fromkeys(jentropy.load(tmp_path / "packed")) | {"lm_head.weight": split("x")}
    placed = jentropy.load(tmp_path / "packed", sharding)
    assert placed["lm_head.weight"].sharding == split("x")
    assert placed["model.norm.weight"].sharding is None
