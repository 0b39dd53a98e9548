"""What one of several processes of `jax.distributed` does, for `test_hosts` and its soak.

    python -m tests.over_hosts FOLDER ADDRESS COUNT NUMBER WHAT [KILLED STEP DELAY_S]

Process KILLED ends some time after a step (`soak.steps`), which is printed, or how many there were.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jentropy
from jentropy.checkpoints import writer
from jentropy.errors import JentropyError

from .soak import steps

HEARTBEAT_S = 10


def spread() -> dict[str, jax.Array]:
    """A tree over all processes: split by rows, by columns, and on every one."""
    mesh = jax.make_mesh((jax.device_count(),), ("x",))

    def put(name: int, shape: tuple[int, ...], *axes: str | None) -> jax.Array:
        values = np.random.default_rng(name).standard_normal(shape).astype(jnp.bfloat16)
        where = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(shape, where, lambda index: values[index])

    return {
        "rows": put(0, (64, 33), "x"),
        "columns": put(1, (9, 64), None, "x"),
        "everywhere": put(2, (50,)),
        "more": put(3, (128, 8), "x", None),
        "last": put(4, (8, 16), "x"),
    }


def bits(tree: dict[str, jax.Array]) -> dict[str, bytes]:
    """What this process holds of a tree."""
    return {
        name: b"".join(np.asarray(part.data).tobytes() for part in array.addressable_shards)
        for name, array in tree.items()
    }


def run(folder: Path, what: str) -> None:
    """One of the trials."""
    if what == "compress":
        jentropy.compress_checkpoint(folder / "source", folder / "dst")
    elif what == "send":
        jentropy.compress_checkpoint(folder / "source", "s3://bucket/dst")
    elif what == "other":  # each its own source
        source = folder / ("source" if jax.process_index() else "another")
        jentropy.compress_checkpoint(source, folder / "dst")
    elif what == "save":
        tree = spread()
        jentropy.save(folder / "dst", tree)
        packed = jentropy.load(folder / "dst", {n: a.sharding for n, a in tree.items()})
        assert bits(jentropy.decompress(packed)) == bits(tree)
    elif what == "train":
        assert bits(trained(folder / "run", spread())) == bits(spread())


def trained(root: Path, tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A tree as a step of a training, saved in the background and restored where it was."""
    import orbax.checkpoint as ocp

    from jentropy import training

    wanted = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
        for name, array in tree.items()
    }
    with ocp.CheckpointManager(root) as manager:
        manager.save(1, args=training.Save(tree))
        for array in tree.values():  # what was taken is not looked at again
            array.delete()
        manager.wait_until_finished()
        restored: dict[str, jax.Array] = manager.restore(1, args=training.Restore(wanted))
    return restored


def main(folder: str, address: str, count: str, number: str, what: str, *killed: str) -> int:
    writer.BUNDLE_BYTES = 2_000
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address, int(count), int(number), heartbeat_timeout_seconds=HEARTBEAT_S
    )
    _, step, delay_s = killed if killed[:1] == (number,) else ("", "-1", "0")
    last = int(step) if step.lstrip("-").isdecimal() else step
    taken = steps.taken(Path(folder), last, float(delay_s))
    try:
        for one in what.split("+"):
            run(Path(folder), one)
    except JentropyError as error:
        print(type(error).__name__, error, flush=True)
        return 2
    print(taken.count("payload"), "payloads", len(taken), "steps\ndone", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
