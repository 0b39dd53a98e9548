"""Parsers given what nobody wrote: an error or a result, in bounded memory and time.

Inputs are mutations of good ones: bits, runs, numbers of JSON, lengths, repeated and exchanged
parts. Whatever a parser raises but an error of jentropy's is a find, and so is one that takes more
than its seconds or its memory. An input that reaches a line of jentropy's that none did before is
mutated further, and kept in the corpus, `tests/fixtures/corpus/PARSER.json`, with `--keep`.

    python -m tests.soak.parsers [--seconds 600] [--seed 0] [--keep] [--parsers safetensors ...]
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import math
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import ml_dtypes
import numpy as np

import jentropy
from jentropy.checkpoints import (
    array_store,
    gguf_models,
    index,
    indices,
    item_tree,
    safetensors,
    store,
    writer,
    zarr_files,
)
from jentropy.checkpoints.contents import read_json
from jentropy.checkpoints.hosts import Team
from jentropy.errors import InputError, JentropyError
from jentropy.schema import parse

from .measuring import write_safetensors

FIXTURES = Path(__file__).parents[1] / "fixtures"
CORPUS, MODELS, QUANTISED = (FIXTURES / name for name in ("corpus", "models", "quantised"))
KEPT, KEPT_BYTES = 60, 4000  # inputs of a corpus, and bytes of each
OURS = tuple(str(Path(jentropy.__file__).parents[1] / name) for name in ("jentropy", "models"))
MOST_SECONDS, MOST_BYTES = 20, 1 << 30  # of CPU an input; what a process grows by
MOST_MAPPED = 1 << 33  # bytes of addresses that it takes beside: threads reserve more than they use
NUMBERS = (-1, 0, 1, 2, 255, 1 << 31, 1 << 32, 1 << 62, 1 << 63, 1 << 64, 1e300, True, None, "", [])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--parsers", nargs="*", choices=PARSERS, default=list(PARSERS))
    given = parser.parse_args()
    # What takes too much is told of, before the machine feels it.
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST_MAPPED
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for name in given.parsers:
        seen = Seen(corpus(name))
        began = time.process_time()
        count = trial(name, given.seconds, given.seed, seen)
        told = f"{len(seen.lines)} lines, {len(seen.inputs)} inputs of a corpus"
        told += f", {time.process_time() - began:.0f} CPU s"
        print(f"{name}: {count} inputs, no find; {told}", flush=True)
        if given.keep:
            kept = smallest(name, seen.inputs)
            (CORPUS / f"{name}.json").write_text(
                json.dumps([base64.b64encode(zlib.compress(data, 9)).decode() for data in kept])
            )


def corpus(name: str) -> list[bytes]:
    """The inputs that are kept for a parser."""
    file = CORPUS / f"{name}.json"
    told = json.loads(file.read_text()) if file.is_file() else []
    return [zlib.decompress(base64.b64decode(one)) for one in told]


def smallest(name: str, inputs: list[bytes]) -> list[bytes]:
    """Of some inputs, the shortest first, those that reach a line that none before does."""
    take, seen = PARSERS[name][1], Seen([])
    for data in sorted(inputs, key=len):
        if len(data) <= KEPT_BYTES and len(seen.inputs) < KEPT:
            with suppress(JentropyError):
                seen.watch(data, take)
    return seen.inputs


class Seen:
    """Lines of jentropy's that inputs have reached, and the inputs that were the first to.

    Args:
      inputs: of a corpus.
    """

    def __init__(self, inputs: list[bytes]):
        self.inputs = list(inputs)
        self.lines: set[tuple[str, int]] = set()

    def watch(self, data: bytes, take: Callable[[bytes], object]) -> None:
        """Gives an input to a parser, and keeps it if it reaches a line anew."""
        before = len(self.lines)
        sys.settrace(self._call)
        try:
            take(data)
        finally:
            sys.settrace(None)
            if len(self.lines) > before and data not in self.inputs:
                self.inputs.append(data)

    def _call(self, frame: FrameType, *_: object) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(OURS) else None

    def _line(self, frame: FrameType, *_: object) -> Callable[..., Any]:
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


def _in_file(run: Callable[[Path], object], name: str) -> Callable[[bytes], object]:
    def parse_bytes(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            return run(path)

    return parse_bytes


def _tensors() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.safetensors"
        tensors = {"w": ("BF16", [4, 8]), "n": ("U8", [3]), "v": ("F32", [5])}
        write_safetensors(file, tensors, lambda _, size: [bytes(range(size % 251)) or b"x"][:1])
        return file.read_bytes()


def _gguf() -> bytes:
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.gguf"
        out = gguf.GGUFWriter(file, "llama")
        out.add_uint32("llama.block_count", 1)
        out.add_array("tokens", ["a", "b"])
        out.add_tensor("w", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        out.add_tensor("v", np.ones(7, np.float32))
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        return file.read_bytes()


def _packed() -> Path:
    folder = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    tree = {
        "a": (rng.standard_normal((20, 90)) * 0.02).astype(ml_dtypes.bfloat16),
        "b": [np.arange(5), 3, "x"],
        "q": {"c": np.zeros((3, 0), np.float32)},
    }
    jentropy.save(folder / "t", tree)
    return folder / "t"


def _index() -> bytes:
    return zlib.decompress(store.Store(_packed()).array("index").tobytes())


def _with_base() -> bytes:
    """An index some of whose tensors are told by those of a base."""
    folder = _packed().parent
    tree = jentropy.decompress(jentropy.load(folder / "t"))
    jentropy.save(folder / "delta", tree, base=folder / "t")
    return zlib.decompress(store.Store(folder / "delta").array("index").tobytes())


def _codec() -> bytes:
    """A chunk with what its entry says, as JSON."""
    opened = store.Store(_packed())
    entry = next(e for e in opened.index.tensors if e.name == "a")
    payload = opened.payload(*entry.places[0], entry.header.chunks[0].bytes)
    told = writer.LINE.write([entry])[0] | {"payload": base64.b64encode(payload.tobytes()).decode()}
    return json.dumps(told).encode()


def _decode(data: bytes) -> object:
    from jentropy import codecs

    try:  # what is only this trial's
        told = json.loads(data)
        payload = np.frombuffer(base64.b64decode(told.pop("payload")), np.uint8)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    (entry,) = parse(writer.LINE, json.dumps([told]), "entry")
    if entry.header.size > 1 << 22:
        return None
    span = entry.header.span(0)
    return codecs.decode([payload], [span], [np.empty(span.size, span.dtype)])


def _used(path: Path) -> object:
    """Analysed, and its values asked for."""
    checkpoint = jentropy.open_checkpoint(path)
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        if math.prod(tensor.shape) < 1 << 20:
            with suppress(InputError):
                tensor.dequantize(np.float32)
    return jentropy.analyze(path)


def _zarr(data: bytes) -> object:
    """An array's metadata, in a store that Orbax might have written."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a" / "c").mkdir(parents=True)
        (folder / "a" / "zarr.json").write_bytes(data)
        (folder / "a" / "c" / "0").write_bytes(bytes(30) + zarr_files.shard_index(30))
        arrays, _ = array_store.read_store(folder, ["a/"])
        return [zarr.array.read() for zarr in arrays if zarr.array.nbytes < 1 << 20]


@functools.cache
def _configs(folder: Path) -> dict[str, Any]:
    """Of every model in a folder its config."""
    files = sorted(folder.glob("*/config.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def _changed(folder: Path, data: bytes) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Of the configs of a folder, as JSON, those that are not what they were."""
    good = _configs(folder)
    try:
        told = json.loads(data)
        told = {name: one for name, one in told.items() if name in good and one != good[name]}
    except (ValueError, AttributeError, RecursionError):
        return
    for name, config in told.items():
        if isinstance(config, dict):
            yield folder / name, config


def _models(data: bytes) -> None:
    from jentropy.models import loading

    for folder, config in _changed(MODELS, data):
        checkpoint = jentropy.Checkpoint(folder / "none", (), config, ())
        architecture, read = loading.read_config(checkpoint)
        loading.placed(architecture, read, {}, np.float32, {})


def _quantised(data: bytes) -> None:
    for good, config in _changed(QUANTISED, data):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in good.iterdir():
                (folder / file.name).symlink_to(file)
            (folder / "config.json").unlink()
            (folder / "config.json").write_text(json.dumps(config))
            checkpoint = jentropy.open_checkpoint(folder)
            for tensor in map(checkpoint.tensor, checkpoint.names()):
                tensor.dequantize(np.float32)


def _named_in_gguf(data: bytes) -> None:
    """What a file of GGUF says of a model, as JSON texts."""
    try:
        texts = {name: json.dumps(text) for name, text in json.loads(data).items()}
    except (ValueError, AttributeError, RecursionError):
        return
    if "config.json" in texts:
        gguf_models.told(texts, ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"])


def _chat(path: Path) -> None:
    from jentropy.models import load_chat_template

    _single(path.parent)
    template = load_chat_template(path.parent)
    if template is not None:
        template.render([{"role": "user", "content": "a"}])


def _single(folder: Path) -> None:
    write_safetensors(folder / "m.safetensors", {"n": ("U8", [3])}, lambda *_: [b"abc"])


def _journal(data: bytes) -> None:
    """Lines of a journal, with their hashes."""
    with tempfile.TemporaryDirectory() as name:
        stage = Path(name)
        made = writer.Writer(stage / "dst", stage, Team(), "it")
        lines = [
            made._first,
            *(writer._hashed(text) for text in data.decode("utf-8", "replace").splitlines()),
        ]
        made._journal_file.write_text("".join(lines), encoding="utf-8")
        for entry in made.journal():
            made.take_up(entry)
        made.begin()


WEIGHTS = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}, "metadata": {"n": 3}}
TREE = {
    "tree_metadata": {
        "('a',)": {
            "key_metadata": [{"key": "a", "key_type": 2}],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
        }
    },
    "use_zarr3": True,
}
BESIDE = {
    "config.json": json.loads((MODELS / "qwen3" / "config.json").read_text()),
    "tokenizer.json": {
        "added_tokens": [{"content": "<s>", "id": 3, "special": True}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
        "post_processor": {"type": "Sequence", "processors": [{"single": [{"SpecialToken": 1}]}]},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b", ["a", "b"]]},
    },
}
CHAT = {
    "bos_token": {"content": "<s>"},
    "eos_token": "</s>",
    "chat_template": [
        {
            "name": "default",
            "template": "{{ bos_token }}{% for m in messages %}{{ m.role }}"
            "{{ m.content[1:3] | trim | tojson }}{{ '%d' % loop.index }}{% endfor %}",
        },
        {"name": "tool_use", "template": "{% if tools %}{{ 1 + 2 }}{% endif %}"},
    ],
}
# A good input, and what takes it.
PARSERS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
    "safetensors": (_tensors, _in_file(safetensors.read, "m.safetensors")),
    "analyze": (_tensors, _in_file(_used, "m.safetensors")),
    "gguf": (_gguf, _in_file(_used, "m.gguf")),
    "zarr": (lambda: zarr_files.metadata(30), _zarr),
    "index": (_index, lambda data: index.from_json(data, Path("index"))),
    "index with a base": (_with_base, lambda data: index.from_json(data, Path("index"))),
    "deflated index": (
        lambda: zlib.compress(_index()),
        lambda data: index.from_bytes(data, Path("index")),
    ),
    "payload": (_codec, _decode),
    "weight map": (
        lambda: json.dumps(WEIGHTS).encode(),
        lambda data: indices.read_weight_map(Path("i"), data),
    ),
    "Orbax metadata": (
        lambda: json.dumps(TREE).encode(),
        lambda data: parse(item_tree.TREE, data, "f"),
    ),
    "models": (lambda: json.dumps(_configs(MODELS)).encode(), _models),
    "quantised": (lambda: json.dumps(_configs(QUANTISED)).encode(), _quantised),
    "named in GGUF": (lambda: json.dumps(BESIDE).encode(), _named_in_gguf),
    "chat": (lambda: json.dumps(CHAT).encode(), _in_file(_chat, "tokenizer_config.json")),
    "journal": (
        lambda: json.dumps(writer.LINE.write(store.Store(_packed()).index.tensors)).encode(),
        _journal,
    ),
    "config": (lambda: b'{"a": [1, {"b": null}]}', lambda data: read_json(Path("c"), data)),
}


def mutated(dice: random.Random, good: bytes) -> bytes:
    """A good input made bad."""
    data = bytearray(good)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        data = dice.choice((_bits, _run, _cut, _twice, _number, _node))(dice, data)
    return bytes(data)


def _bits(dice: random.Random, data: bytearray) -> bytearray:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return data


def _run(dice: random.Random, data: bytearray) -> bytearray:
    at = dice.randrange(len(data) + 1)
    size = dice.choice((1, 2, 4, 8))
    data[at : at + size] = dice.choice((b"\0", b"\xff", dice.randbytes(1))) * size
    return data


def _cut(dice: random.Random, data: bytearray) -> bytearray:
    at = dice.randrange(len(data) + 1)
    return data[:at] + data[at + dice.choice((1, 8, len(data))) :]


def _twice(dice: random.Random, data: bytearray) -> bytearray:
    at, size = dice.randrange(len(data) + 1), dice.choice((1, 10, 100))
    return data[:at] + data[at : at + size] * dice.choice((2, 3, 1000)) + data[at + size :]


def _number(dice: random.Random, data: bytearray) -> bytearray:
    places = [n for n, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return data
    at = dice.choice(places)
    return data[:at] + json.dumps(dice.choice(NUMBERS)).encode() + data[at + 1 :]


def _node(dice: random.Random, data: bytearray) -> bytearray:
    """A node of JSON replaced by another one."""
    try:
        begin = data.index(b"{")
        content = json.loads(bytes(data[begin:]).decode("utf-8"))
    except (ValueError, RecursionError):
        return data
    nodes = [(content, key) for key in content] if isinstance(content, dict) else []
    for parent, key in nodes:
        inside = parent[key]
        if isinstance(inside, dict):
            nodes += [(inside, k) for k in inside]
        elif isinstance(inside, list):
            nodes += [(inside, n) for n in range(len(inside))]
    if not nodes:
        return data
    (parent, key), (other, name) = dice.choice(nodes), dice.choice(nodes)
    parent[key] = dice.choice((*NUMBERS, {}, [[]], "w" * 99, other[name]))
    try:
        return data[:begin] + json.dumps(content).encode()
    except (ValueError, RecursionError):  # it holds itself
        return data


def _too_long(*_: object) -> None:
    raise TimeoutError


def trial(parser: str, seconds: float, seed: int, seen: Seen | None = None) -> int:
    """Feeds a parser for so long; how many inputs it had.

    Args:
      seen: whose inputs are mutated too, and which watches; None: nobody does.
    """
    make, take = PARSERS[parser]
    good, dice, count = make(), random.Random(seed), 0
    take(good)
    kept = [] if seen is None else list(seen.inputs)
    began, before = time.monotonic(), signal.signal(signal.SIGPROF, _too_long)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    try:
        while time.monotonic() - began < seconds or count <= 10:
            among = [good] if seen is None else [good, *seen.inputs]
            # First the corpus as it is; then what is newest is tried as often as all else.
            one = dice.choice((dice.choice(among), among[-1]))
            data = kept.pop() if kept else mutated(dice, one)
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            try:
                take(data) if seen is None else seen.watch(data, take)
            except JentropyError as error:
                if len(str(error)) > 2000:
                    raise AssertionError("a long message") from error
            except Exception as error:
                traceback.print_exc()
                told = base64.b64encode(data[:3000]).decode()
                raise AssertionError(f"{parser}: {type(error).__name__} of {told}") from error
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            count += 1
    finally:
        signal.signal(signal.SIGPROF, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - peak
    assert grown < MOST_BYTES, f"{parser} took {grown >> 20} MiB"
    return count


if __name__ == "__main__":
    main()
