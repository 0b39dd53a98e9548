"""Flax modules of one's own over compressed weights: called, trained and saved as before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx

import jentropy
from jentropy import formats
from jentropy.errors import InputError, UnsupportedError
from jentropy.models import Compressed, CompressedParam, compress_module, compress_params
from jentropy.models.compressing import matrices
from jentropy.pallas_kernels import ResidentArray, ResidentTensor, api, reference, resident_array
from jentropy.pallas_kernels.general import fused

from .conftest import same_bits, same_tree

BF16 = jnp.bfloat16


@pytest.fixture(autouse=True)
def as_flax_is_used():
    """Its layers let several dtypes meet; these random numbers compile in half the time."""
    with jax.numpy_dtype_promotion("standard"), jax.default_prng_impl("rbg"):
        yield


@nnx.jit
def call(model, *args):
    return model(*args)


@nnx.jit
def both_ways(model, x):
    """What a model gives, and a gradient of x."""
    y, back = jax.vjp(model, x)
    return y, *back(jnp.cos(y))


def both(make):
    """A module, and the same one with compressed weights."""
    return make(nnx.Rngs(0)), compress_module(make(nnx.Rngs(0)), matrix)


def matrix(path, value):
    return value.ndim >= 2


def drawn(key, shape, dtype=jnp.float32):
    """Initial weights for which nothing is compiled."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape) / 8, dtype)


LINEARS = {
    "Linear": (lambda **o: nnx.Linear(64, 96, **o), (5, 64)),
    "LoRALinear": (lambda **o: nnx.LoRALinear(64, 96, lora_rank=4, **o), (5, 64)),
    "heads": (lambda **o: nnx.LinearGeneral(64, (6, 16), **o), (2, 3, 64)),
    "heads in": (lambda **o: nnx.LinearGeneral((4, 16), 96, axis=(-2, -1), **o), (2, 3, 4, 16)),
    "axes apart": (
        lambda **o: nnx.LinearGeneral((4, 16), (6, 16), axis=(1, -1), **o),
        (2, 4, 3, 16),
    ),
    "batch axis": (lambda **o: nnx.LinearGeneral(64, 96, batch_axis={0: 3}, **o), (3, 2, 64)),
    "Einsum": (lambda **o: nnx.Einsum("nta,hab->nthb", (6, 64, 16), (6, 16), **o), (2, 3, 64)),
    "ellipsis": (lambda **o: nnx.Einsum("...d,df->f...", (64, 96), **o), (2, 3, 64)),
    "experts": (lambda **o: nnx.Einsum("ebd,edf->ebf", (3, 64, 96), **o), (3, 2, 64)),
}
OPTIONS = {
    "bf16": {"dtype": BF16},
    "float32": {},
    "float16": {"dtype": jnp.float16, "precision": "highest"},
    "float32 sums": {"dtype": BF16, "preferred_element_type": jnp.float32},
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, "bf16") for name in LINEARS),
        *(("heads", options) for options in OPTIONS if options != "bf16"),
    ],
)
def test_layers_compute_what_they_did(name, options):
    make, shape = LINEARS[name]
    options = {"kernel_init": drawn, "param_dtype": BF16, **OPTIONS[options]}
    dense, ours = both(lambda rngs: make(rngs=rngs, **options))
    kernel = ours.kernel
    assert type(kernel) is Compressed
    assert kernel.shape == dense.kernel.shape
    assert kernel.dtype == BF16
    assert kernel.get_value().weight.bits_per_weight < 13
    x = jax.random.normal(jax.random.key(1), shape)
    assert same_tree(both_ways(ours, x), both_ways(dense, x))
    assert same_bits(jentropy.decode(ours).kernel.get_value(), dense.kernel.get_value())


def test_a_kernel_of_heads_is_one_matrix():
    """Many small ones take more."""
    kernel = jax.random.normal(jax.random.key(0), (8, 12, 64), BF16)
    one = jentropy.to_resident(kernel, "reference", axes=(1, 2), reduce_axis=-2)
    assert one.weight.shape == (8, 768)
    assert one.weight.bits_per_weight < 12.4
    assert same_bits(jentropy.decode(one), kernel)
    many = jentropy.to_resident(kernel, "reference")
    assert many.stack == (8,)
    assert many.bits_per_weight > one.weight.bits_per_weight
    stack = jentropy.to_resident(jentropy.compress(kernel[None]), "reference", axes=(2, 1))
    assert stack.weight.shape == (1, 8 * 12, 64)
    assert same_bits(jentropy.decode(stack), kernel[None])
    vector = jentropy.to_resident(kernel[0, 0], "reference", axes=(1, 2))
    assert same_bits(vector, kernel[0, 0])
    with pytest.raises(InputError, match="axes of a matrix: expected all but"):
        resident_array(kernel, [0], [2], "reference")
    weight = formats.QuantizedTensor(
        number_format=formats.FP8_ROW, codes=jentropy.quantize(kernel, formats.FP8_ROW)
    )
    with pytest.raises(UnsupportedError, match="axes of a quantised weight"):
        jentropy.to_resident(weight, "reference", axes=(1, 2))


def test_float32_that_was_bf16_rests_as_that():
    layer = nnx.Linear(64, 96, rngs=nnx.Rngs(0))
    before = call(layer, jnp.ones((2, 64)))
    assert type(compress_module(layer, matrix).kernel) is nnx.Param  # it has 24 bits
    kernel = layer.kernel.get_value().astype(BF16).astype(jnp.float32)
    layer.kernel.set_value(kernel)
    expected = call(layer, jnp.ones((2, 64)))
    compress_module(layer, matrix)
    assert layer.kernel.dtype == jnp.float32
    assert layer.kernel.get_value().weight.bits_per_weight < 13
    assert same_bits(call(layer, jnp.ones((2, 64))), expected)
    assert not same_bits(before, expected)


@pytest.mark.parametrize("dtype", [BF16, jnp.float32])
def test_a_table_is_looked_up_and_attended(dtype):
    dense, ours = both(lambda rngs: nnx.Embed(300, 64, dtype=dtype, param_dtype=BF16, rngs=rngs))
    ids = jnp.array([[0, 5, -1], [299, 300, -301]])
    for some in (ids, ids.astype(jnp.int16), jnp.arange(9, dtype=jnp.uint8)):
        assert same_bits(call(ours, some), call(dense, some))
    attend = nnx.jit(lambda model, x: model.attend(x))
    x = jax.random.normal(jax.random.key(1), (3, 64), dtype)
    assert same_bits(attend(ours, x), attend(dense, x))
    with pytest.raises(ValueError, match="integer"):
        ours(jnp.ones(3))
    one, ours = both(lambda rngs: nnx.Embed(1, 512, param_dtype=BF16, rngs=rngs))
    assert same_bits(call(ours, ids), call(one, ids))


def test_what_a_layer_was_given_still_multiplies():
    seen = []

    def product(x, w, *args, **options):
        seen.append((type(w), w.shape))
        return 2 * jax.lax.dot_general(x, w, *args, **options)

    x = jnp.ones((2, 64), BF16)
    for where in ({"dot_general": product}, {"dot_general_cls": lambda: product}):
        layer = nnx.LinearGeneral(64, (6, 16), param_dtype=BF16, rngs=nnx.Rngs(0), **where)
        before = layer(x)
        assert same_bits(compress_module(layer)(x), before)
    assert [shape for _, shape in seen] == 4 * [(64, 6, 16)]


@pytest.mark.parametrize("number_format", [formats.INT4_GROUP, formats.FORMATS["BF16"]])
def test_weights_may_be_rounded(number_format):
    layer = nnx.LinearGeneral(256, (4, 32), rngs=nnx.Rngs(0))
    rounded = resident_array(layer.kernel.get_value(), [0], [1, 2], number_format=number_format)
    numbers = layer.kernel.get_value().reshape(256, 128).T
    if number_format.parameters:
        numbers = jentropy.dequantize(number_format, jentropy.quantize(numbers, number_format))
    else:
        numbers = numbers.astype(BF16).astype(jnp.float32)
    dense = numbers.T.reshape(256, 4, 32)
    assert same_bits(jnp.asarray(rounded), dense)
    assert rounded.weight.shape[-2:] == ((128, 256) if number_format.parameters else (256, 128))
    small = compress_module(nnx.clone(layer), number_format=number_format)
    layer.kernel.set_value(dense)
    x = jax.random.normal(jax.random.key(1), (3, 256))
    assert same_bits(call(small, x), call(layer, x))


class Products:
    """Stands in for kernels of a layout: products from its arrays, in plain JAX."""

    def __init__(self, monkeypatch):
        self.precisions: list = []
        monkeypatch.setattr(api, "matmul", self.multiply)

    def multiply(self, x, w, transpose_w, out_dtype, precision):
        assert isinstance(w, ResidentTensor)
        assert w.backend == "tpu"
        self.precisions.append(precision)
        out_dtype = x.dtype if out_dtype is None else out_dtype
        return reference.matmul(x, w, transpose_w=transpose_w, out_dtype=out_dtype)


def test_kernels_multiply_from_the_compressed_bytes(monkeypatch):
    """Within 1e-5 of the largest of what Flax gives: sums may be in another order."""
    products = Products(monkeypatch)
    options = {
        "kernel_init": drawn,
        "param_dtype": BF16,
        "dtype": BF16,
        "preferred_element_type": jnp.float32,
        "rngs": nnx.Rngs(0),
    }
    cases = [
        (nnx.LinearGeneral(256, (4, 128), **options), (3, 256)),
        (nnx.LinearGeneral((2, 128), 512, axis=(0, -1), **options), (2, 3, 128)),
        (nnx.Einsum("...a,hab->h...b", (4, 256, 128), **options), (3, 256)),
        (nnx.Einsum("abc,cdb->ad", (128, 512, 2), precision="highest", **options), (3, 2, 128)),
    ]
    for count, (layer, shape) in enumerate(cases, 1):
        x = drawn(None, shape, BF16)
        expected = layer(x)
        y = compress_module(layer, backend="tpu")(x)
        assert len(products.precisions) == count
        assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(y, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    assert products.precisions == [None, None, None, "highest"]


def test_kernels_multiply_as_asked(monkeypatch):
    products = Products(monkeypatch)
    table = nnx.Embed(
        512, 256, embedding_init=drawn, param_dtype=BF16, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    ids, x = jnp.array([0, -1, 512]), drawn(None, (3, 256))
    rows, right = table(ids), table.attend(x)
    compress_module(table, backend="tpu")
    assert same_bits(table(ids), rows)
    for precision in ("default", "float32"):
        with jax.default_matmul_precision(precision):
            np.testing.assert_allclose(table.attend(x), right, atol=1e-5)
    assert products.precisions == [None, "highest"]
    wide = table.embedding.get_value().astype(jnp.float32)
    for options in ({"precision": "tensorfloat32"}, {"out_sharding": jax.P()}, {"other": 1}):
        assert fused(x, wide, (1,), (1,), **options) is None
    assert fused(x.astype(BF16), wide, (1,), (1,)) is None


class Block(nnx.Module):
    def __init__(self, rngs, lora):
        options = {"dtype": BF16, "param_dtype": BF16, "rngs": rngs}
        self.norm = nnx.LayerNorm(64, **options)
        self.attention = nnx.MultiHeadAttention(4, 64, decode=False, dropout_rate=0.1, **options)
        self.up = nnx.Linear(64, 128, **options)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.down = nnx.Linear(128, 64, **options)
        if lora:
            self.up = nnx.LoRA(64, 4, 128, base_module=self.up, dtype=BF16, rngs=rngs)
            self.attention = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(self.dropout(nnx.gelu(self.up(x))))


class Model(nnx.Module):
    """Layers that are stacked by `nnx.vmap` and run by `nnx.scan`."""

    def __init__(self, rngs, lora=False):
        self.embed = nnx.Embed(300, 64, dtype=BF16, param_dtype=BF16, rngs=rngs)
        self.blocks = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: Block(rngs, lora)))(rngs)
        self.train()

    def __call__(self, ids):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(block, x):
            return block(x)

        return self.embed.attend(run(self.blocks, self.embed(ids)))


IDS = jnp.arange(12).reshape(2, 6)


def loss(model, ids):
    logits = model(ids[:, :-1]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


def test_a_model_of_stacked_layers_with_dropout():
    dense, ours = both(Model)
    query = ours.blocks.attention.query.kernel
    assert query.shape == (2, 64, 4, 16)
    assert query.get_value().weight.shape == (2, 64, 64)
    assert {type(v) for _, v in nnx.to_flat_state(nnx.state(ours, Compressed))} == {Compressed}
    for _ in range(2):  # dropout goes on from where it was
        assert same_bits(call(ours, IDS), call(dense, IDS))
    ours.eval()
    assert "Compressed" in nnx.tabulate(ours, IDS, depth=1, console_kwargs={"width": 200})
    graph, state = nnx.split(ours)
    shape = jax.eval_shape(lambda state, ids: nnx.merge(graph, state)(ids), state, IDS)
    abstract = compress_module(nnx.eval_shape(lambda: Model(nnx.Rngs(0))))
    abstract.eval()
    paths = [[path for path, _ in nnx.to_flat_state(s)] for s in (nnx.state(abstract), state)]
    assert paths[0] == paths[1]
    graph, state = nnx.split(abstract)
    assert jax.eval_shape(lambda state, ids: nnx.merge(graph, state)(ids), state, IDS) == shape
    assert "ResidentArray(bfloat16[2, 64, 4, 16], reference_window12" in repr(query)
    assert "ResidentArray(bfloat16" in repr(ours)


def test_what_is_left_trains():
    """Norms, biases and LoRA learn over compressed weights as over dense ones that are frozen."""

    @nnx.jit
    def step(model, optimizer, ids):
        what = nnx.DiffState(0, optimizer.wrt)
        value, gradients = nnx.value_and_grad(loss, argnums=what)(model, ids)
        optimizer.update(model, gradients)
        return value

    def losses(model, what):
        model.set_attributes(deterministic=True)
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=what)
        return [float(step(model, optimizer, IDS)) for _ in range(3)]

    ours = compress_module(Model(nnx.Rngs(0), lora=True))
    frozen = jax.tree.map(jnp.copy, nnx.state(ours, Compressed))
    learnt = losses(ours, nnx.Param)
    assert learnt[2] < learnt[0]
    assert same_tree(nnx.state(ours, Compressed), frozen)
    left = nnx.All(nnx.Param, nnx.Not(matrices))
    assert losses(Model(nnx.Rngs(0), lora=True), left) == learnt


class Small(nnx.Module):
    def __init__(self, seed):
        options = {"param_dtype": BF16, "rngs": nnx.Rngs(seed)}
        self.embed = nnx.Embed(300, 64, **options)
        self.heads = nnx.LinearGeneral(64, (4, 16), **options)

    def __call__(self, ids):
        return self.heads(self.embed(ids))


def test_a_module_is_saved_and_restored(tmp_path):
    expected, ours = call(Small(0), IDS), compress_module(Small(0))
    saved = jentropy.decode(nnx.state(ours))
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "orbax", saved)
    checkpointer.wait_until_finished()
    jentropy.save(tmp_path / "ours", saved)
    graph, target = nnx.split(nnx.eval_shape(lambda: Small(0)))
    for restored in (
        checkpointer.restore(tmp_path / "orbax", target),
        jentropy.decompress(jentropy.load(tmp_path / "ours", target=target)),
    ):
        assert same_bits(call(compress_module(nnx.merge(graph, restored)), IDS), expected)
    # As it lies on this device, too.
    jentropy.save(tmp_path / "resident", nnx.state(ours))
    other = compress_module(Small(1))
    restored = jentropy.load(tmp_path / "resident", target=nnx.state(ours))
    nnx.update(other, jentropy.decompress(restored))
    assert same_bits(call(other, IDS), expected)
    # Dense values that are put back rest compressed again.
    other = compress_module(Small(1))
    nnx.update(other, saved)
    assert not isinstance(other.heads.kernel.get_value(), ResidentArray)
    assert same_bits(call(compress_module(other), IDS), expected)
    assert isinstance(other.heads.kernel.get_value(), ResidentArray)


def test_filters_choose():
    def compressed(filter):
        model = compress_module(Small(0), filter)
        return {path[-2] for path, _ in nnx.to_flat_state(nnx.state(model, Compressed))}

    assert compressed(nnx.PathContains("heads")) == {"heads"}
    assert compressed(nnx.All(nnx.Param, nnx.Not(nnx.PathContains("heads")))) == {"embed"}
    assert compressed(lambda path, value: path[-1] == "embedding") == {"embed"}
    assert compressed(True) == {"embed", "heads"}
    assert compressed(nnx.LoRAParam) == set()
    small = nnx.Linear(16, 16, param_dtype=BF16, rngs=nnx.Rngs(0))
    assert type(compress_module(small).kernel) is nnx.Param


def test_tied_weights_stay_tied():
    class Tied(nnx.Module):
        def __init__(self):
            options = {"param_dtype": BF16, "rngs": nnx.Rngs(0)}
            self.one, self.two = nnx.Linear(64, 64, **options), nnx.Linear(64, 64, **options)
            self.two.kernel = self.one.kernel
            self.again = self.one

        def __call__(self, x):
            return self.again(self.two(self.one(x)))

    before, model = Tied()(jnp.ones((1, 64))), compress_module(Tied(), matrix)
    assert model.two.kernel is model.one.kernel
    assert len(nnx.to_flat_state(nnx.state(model, Compressed))) == 1
    assert same_bits(model(jnp.ones((1, 64))), before)


def test_a_stack_along_another_axis_is_refused():
    make = nnx.vmap(lambda rngs: nnx.Linear(64, 96, param_dtype=BF16, rngs=rngs), out_axes=1)
    layers = nnx.split_rngs(splits=3)(make)(nnx.Rngs(0))
    with pytest.raises(InputError, match=r"'kernel': kernel: expected \[\*stack, 64, 96\]"):
        compress_module(layers, matrix)


def test_trees_are_decoded():
    dense = jax.random.normal(jax.random.key(0), (64, 64), BF16)
    codes = jentropy.quantize(dense, formats.FP8_ROW)
    weight = formats.QuantizedTensor(number_format=formats.FP8_ROW, codes=codes)
    tree = {
        "resident": [jentropy.to_resident(dense, "reference")],
        "archived": jentropy.compress({"w": dense, "n": np.arange(3)}),
        "quantised": (weight, jentropy.compress(weight)),
        "others": [dense[0], 3, "text", None],
    }
    decoded = jentropy.decode(tree)
    right = weight.dequantize(BF16)
    assert same_tree(
        decoded,
        {
            "resident": [dense],
            "archived": {"w": dense, "n": np.arange(3)},
            "quantised": (right, right),
            "others": [dense[0], 3, "text", None],
        },
    )
    wide = jentropy.decode(tree, jnp.float32)
    assert wide["resident"][0].dtype == wide["archived"]["w"].dtype == jnp.float32
    assert wide["archived"]["n"].dtype == np.int64
    assert wide["others"][0].dtype == BF16
    with pytest.raises(InputError, match=r"tensor 'w\.0': weight: expected one with data"):
        jentropy.decode({"w": [jentropy.to_resident(jax.ShapeDtypeStruct((64, 64), BF16))]})


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        options = {"dtype": BF16, "param_dtype": BF16}
        x = x + nn.MultiHeadDotProductAttention(4, **options)(x)
        x = nn.Dropout(0.1, deterministic=False)(x)
        return x + nn.Dense(64, **options)(nn.relu(nn.Dense(128, **options)(x))), None


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(300, 64, dtype=BF16, param_dtype=BF16)
        layers = nn.scan(
            LinenBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=2,
        )
        x, _ = layers()(embed(ids), None)
        return embed.attend(x)


def is_box(leaf):
    return isinstance(leaf, CompressedParam)


def test_linen_modules_take_compressed_parameters():
    model, keys = LinenModel(), {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = jax.jit(model.init)(keys, IDS)
    small = compress_params(params, lambda path, value: path[-1] in ("kernel", "embedding"))
    boxes = [leaf for leaf in jax.tree.leaves(small, is_leaf=is_box) if is_box(leaf)]
    assert len(boxes) == 7
    assert all(box.value.weight.bits_per_weight < 13 for box in boxes)
    block = small["params"]["ScanLinenBlock_0"]["MultiHeadDotProductAttention_0"]
    assert block["query"]["kernel"].value.weight.shape == (2, 64, 64)
    assert block["out"]["kernel"].value.shape == (2, 4, 16, 64)
    apply = jax.jit(lambda params, ids: model.apply(params, ids, rngs={"dropout": keys["dropout"]}))
    expected = apply(params, IDS)
    assert same_bits(apply(small, IDS), expected)
    assert same_tree(nn.meta.unbox(small), params)
    assert same_tree(nn.meta.unbox(jentropy.decode(small)), params)


def test_linen_trains_what_is_left():
    model, x = nn.Dense(128, param_dtype=BF16), jnp.ones((2, 64), BF16)
    params = jax.jit(model.init)(jax.random.key(0), x)
    small = compress_params(params)
    left = jax.tree.map(lambda p: None if is_box(p) else p, small, is_leaf=is_box)

    def loss(left, params):
        whole = jax.tree.map(
            lambda a, b: b if a is None else a,
            left,
            params,
            is_leaf=lambda p: p is None or is_box(p),
        )
        return jnp.sum(jnp.sin(model.apply(whole, x).astype(jnp.float32)))

    gradient = jax.jit(jax.grad(loss))
    ours, dense = gradient(left, small), gradient(params, params)
    assert same_bits(ours["params"]["bias"], dense["params"]["bias"])
    assert ours["params"]["kernel"] is None
    with pytest.raises(InputError, match=r"'params\.kernel': axes of a matrix"):
        compress_params(params, axes=lambda path, value: (1, 3))
