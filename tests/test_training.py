"""Steps of a training through Orbax's managers: compressed, and back bit for bit."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from orbax.checkpoint import v1

import jentropy
from jentropy import training
from jentropy.errors import InputError


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)(nn.Dense(64)(x))


def linen_state() -> TrainState:
    """A state after one step of Adam."""
    module = Linear()
    params = module.init(jax.random.key(0), jnp.ones((1, 32)))["params"]
    state = TrainState.create(
        apply_fn=module.apply, params=params, tx=optax.chain(optax.clip(1.0), optax.adam(1e-2))
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return state.apply_gradients(grads=jax.tree.map(lambda p: p * 0.1, params))


def nnx_state():
    """Parameters, counts and random keys of a module and its optimiser."""
    rngs = nnx.Rngs(1)
    module = nnx.Sequential(nnx.Linear(32, 64, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
    optimizer = nnx.Optimizer(module, optax.adamw(1e-2), wrt=nnx.Param)
    return nnx.state((module, optimizer))


def mixed_state():
    """What else a training keeps."""
    return {
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 4),
        "step": 7,
        "rate": 0.1,
        "none": None,
        "nan": np.frombuffer(np.array([0x7FC1, 0x8000, 0x7F80], np.uint16).tobytes(), jnp.bfloat16),
        "ema": (jnp.full((3, 5), -0.0), [jnp.arange(4, dtype=jnp.int8)]),
    }


STATES = {"linen": linen_state, "nnx": nnx_state, "mixed": mixed_state}


def abstract(state):
    """The state without its numbers, on the first device."""
    there = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def of(leaf):
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)
        return leaf

    return jax.tree.map(of, state)


def assert_same(found, state) -> None:
    """Types, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert isinstance(one, jax.Array) == isinstance(other, jax.Array)
        if isinstance(other, jax.Array) and jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
            assert one.dtype == other.dtype
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("name", STATES)
def test_a_manager_keeps_compressed_steps(tmp_path, name):
    state = STATES[name]()
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        for step in range(3):
            manager.save(step, args=training.Save(state))
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 2]
        assert_same(manager.restore(2, args=training.Restore(abstract(state))), state)
    folder = tmp_path / "run" / "1" / "default" / "compressed"
    assert jentropy.verify(folder).tensors > 0


@pytest.mark.parametrize("name", STATES)
def test_a_checkpointer_of_v1_keeps_compressed_steps(tmp_path, name):
    state = STATES[name]()
    policy = v1.training.preservation_policies.LatestN(2)
    with (
        training.context(),
        v1.training.Checkpointer(tmp_path / "run", preservation_policy=policy) as checkpointer,
    ):
        for step in range(3):
            checkpointer.save_async(step, state).result()
        assert [one.step for one in checkpointer.checkpoints] == [1, 2]
        assert_same(checkpointer.load(2, abstract(state)), state)
        told = jax.tree.leaves(checkpointer.metadata(2).metadata)
        arrays = [leaf for leaf in jax.tree.leaves(state) if hasattr(leaf, "dtype")]
        structs = [leaf for leaf in told if isinstance(leaf, jax.ShapeDtypeStruct)]
        assert len(told) == len(jax.tree.leaves(state))
        shapes = sorted((leaf.shape, str(leaf.dtype)) for leaf in arrays)
        assert sorted((one.shape, str(one.dtype)) for one in structs) == shapes
    assert jentropy.verify(tmp_path / "run" / "1" / "state" / "compressed").tensors > 0


def test_a_state_may_change_once_it_was_taken(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"w": jnp.zeros((300, 1000)), "n": np.zeros(5)}
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(0, args=training.Save(state))
        state["n"] += 1
        step(state)
        manager.wait_until_finished()
        found = manager.restore(0, args=training.Restore())
    assert not np.asarray(found["w"]).any()
    assert not found["n"].any()


def test_parts_of_a_state_are_told_of(tmp_path):
    state = linen_state()
    training.CompressedHandler().save(tmp_path, args=training.Save(state))
    parts = {part.name: part for part in training.gained(tmp_path)}
    assert {"params", "opt_state.1.0.mu", "opt_state.1.0.nu"} <= parts.keys()
    params = parts["params"]
    assert params.raw_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert 0 < params.saved < 1


def test_what_is_no_compressed_state_is_told(tmp_path):
    with pytest.raises(InputError, match="no compressed state"):
        training.CompressedHandler().restore(tmp_path)


def test_a_step_comes_back_on_another_topology_and_is_refused_by_orbax_alone(tmp_path):
    state = {
        "w": jnp.arange(64 * 24, dtype=jnp.bfloat16).reshape(64, 24),
        "keys": jax.random.split(jax.random.key(1), 8),
        "n": jnp.int32(3),
    }
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(5, args=training.Save(state))
    with training.context(), v1.training.Checkpointer(tmp_path / "v1") as checkpointer:
        checkpointer.save_async(5, {"w": state["w"]}).result()
    script = """
        import sys
        import jax, jax.numpy as jnp, numpy as np
        import orbax.checkpoint as ocp
        from orbax.checkpoint import v1
        run, other = sys.argv[1:]
        for read, told in (
            (lambda: ocp.CheckpointManager(run).restore(5), "could not be restored"),
            (lambda: ocp.StandardCheckpointer().restore(run + "/5/default"), "_METADATA"),
            (lambda: v1.load(run + "/5"), "No valid PyTree"),
            (lambda: v1.training.Checkpointer(other).load(5), "incompatible handler"),
            (lambda: v1.load(other + "/5"), "tree_metadata"),
        ):
            try:
                found = read()
            except Exception as error:
                assert told in str(error), error
            else:
                raise AssertionError(found)
        assert "jentropy" not in sys.modules
        from jax.sharding import NamedSharding, PartitionSpec as P
        from jentropy import training
        mesh = jax.make_mesh((4, 2), ("x", "y"))
        rows, split = NamedSharding(mesh, P("x")), NamedSharding(mesh, P("x", "y"))
        like = jax.ShapeDtypeStruct
        key = jax.eval_shape(lambda: jax.random.split(jax.random.key(1), 8))
        wanted = {
            "w": like((64, 24), jnp.bfloat16, sharding=split),
            "keys": like(key.shape, key.dtype, sharding=rows),
            "n": like((), jnp.int32, sharding=NamedSharding(mesh, P())),
        }
        found = ocp.CheckpointManager(run).restore(5, args=training.Restore(wanted))
        assert found["w"].sharding == split and len(found["w"].addressable_shards) == 8
        same = jnp.arange(64 * 24, dtype=jnp.bfloat16).reshape(64, 24)
        assert np.asarray(found["w"]).tobytes() == np.asarray(same).tobytes()
        keys = jax.random.key_data(jax.random.split(jax.random.key(1), 8))
        assert (np.asarray(jax.random.key_data(found["keys"])) == np.asarray(keys)).all()
        assert int(found["n"]) == 3 and len(found["n"].sharding.device_set) == 8
    """
    subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(script),
            *map(str, (tmp_path / "run", tmp_path / "v1")),
        ],
        check=True,
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "PYTHONPATH": str(Path(jentropy.__file__).parents[1]),
        },
    )
