"""Large weights are analysed in slabs of their rows: the same counts, a part in memory."""

import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import jentropy
from jentropy.checkpoints import mapping, slabs

from .conftest import HERE

QUANTISED = HERE / "fixtures" / "quantised"
NAMES = sorted(p.name for p in QUANTISED.iterdir() if p.is_dir())


@pytest.fixture
def small(monkeypatch) -> list[int]:
    """Weights of any size are cut; the codes of every run."""
    monkeypatch.setattr(slabs, "LARGE", 1 << 8)
    monkeypatch.setattr(slabs, "WEIGHTS", 1 << 11)
    monkeypatch.setattr(slabs, "AHEAD", 1 << 9)
    sizes: list[int] = []
    rows = slabs._rows

    def counted(code, axis, start, stop):
        found = rows(code, axis, start, stop)
        sizes.append(found.size)
        return found

    monkeypatch.setattr(slabs, "_rows", counted)
    return sizes


def told(source) -> dict:
    return jentropy.analyze(source, contexts=False).to_json()


def test_quantised_weights_count_the_same(request):
    whole = {name: told(QUANTISED / name) for name in NAMES}
    sizes, cut = request.getfixturevalue("small"), []
    for name, report in whole.items():
        del sizes[:]
        assert told(QUANTISED / name) == report, name
        cut += [name] if len(sizes) > 2 else []
    assert len(cut) > len(NAMES) // 2


def test_arrays_of_orbax_are_read_in_parts(tmp_path, small, monkeypatch):
    rng = np.random.default_rng(0)
    tree = {"w": jnp.asarray(rng.standard_normal((300, 64)), jnp.bfloat16), "v": jnp.ones((90, 70))}
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = 1 << 12
    with context:
        ocp.save(tmp_path / "orbax", tree)
    pieces, put_down = [], mapping.put_down
    monkeypatch.setattr(mapping, "IN_MEMORY", 1 << 12)
    monkeypatch.setattr(
        mapping, "put_down", lambda parts: put_down(pieces.append(p) or p for p in parts)
    )
    held = jentropy.open_checkpoint(tmp_path / "orbax").tensor("w").stored["code"].array.read()
    assert len(pieces) > 4
    assert held.tobytes() == np.asarray(tree["w"]).tobytes()
    found = told(tmp_path / "orbax")
    assert len(small) > 4
    assert max(small) < 300 * 64 / 4
    jentropy.compress_checkpoint(tmp_path / "orbax", tmp_path / "packed")
    del small[:]
    expected = told(tree)
    for report in (found, told(tmp_path / "packed")):
        assert [t["entropy_bits"] for t in report["tensors"]] == pytest.approx(
            [t["entropy_bits"] for t in sorted(expected["tensors"], key=lambda t: t["name"])]
        )


def test_rows_of_transposed_and_packed_codes_are_cut():
    rng = np.random.default_rng(1)
    from jentropy.checkpoints.contents import in_memory
    from jentropy.checkpoints.unpacking import Packed, StoredCodes, Whole
    from jentropy.formats import ELEMENTS

    cases = [
        (Whole(transposed=True), "INT8", np.int8, (40, 96), (96, 40)),
        (Packed(axis=-2, transposed=True), "UINT4", np.int32, (12, 64), (64, 96)),
        (Packed(axis=-1, transposed=True), "UINT4", np.int32, (48, 8), (64, 48)),
        (Packed(axis=-2), "UINT4", np.int32, (12, 64), (96, 64)),
        (Packed(axis=-1), "UINT4", np.uint8, (96, 32), (96, 64)),
    ]
    for how, name, dtype, stored, shape in cases:
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, stored, dtype, endpoint=True)
        array = in_memory("w", values, HERE)
        code = StoredCodes(array=array, element=ELEMENTS[name], shape=shape, unpacking=how)
        whole = np.asarray(code)
        for start in range(0, shape[0], 16):
            part = slabs._rows(code, 0, start, start + 16)
            assert (part == whole[start : start + 16]).all(), how
