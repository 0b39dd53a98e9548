"""What a config declares of its quantisation: whether it is of the weights alone.

A model runs from its weights as they are stored. Activations and the cache are not quantised,
whatever is declared of them (static or dynamic, and `kv_cache_scheme`): that is what a runtime
gives up for speed. But rotations, transforms and adapters are part of the function that the
weights were made for: a key that is not known to change nothing refuses the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jentropy.checkpoints import Checkpoint
from jentropy.checkpoints.contents import GPTQ, MODELOPT, read_json
from jentropy.errors import InputError, UnsupportedError

from .keys import is_neutral, known, refuse_unread

PLACES = ("quantization_config", "compression_config", "quantization")  # of config.json


def refuse_online(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for a declaration that changes more than the weights.

    Args:
      config: `config.json`.
    """
    for where, declared in _declarations(checkpoint, config):
        for key, value in _online(declared):
            raise UnsupportedError(
                f"{where}: {key}",
                file=checkpoint.source,
                expected="none that changes the forward pass beside the weights",
                found=f"{value!r:.60}",
            )
        # Of MLX: a module's own bits, under its name.
        modules = {k for k, value in declared.items() if "." in k and isinstance(value, Mapping)}
        refuse_unread(declared, modules, known("quantization"), where, checkpoint.source)


def _declarations(
    checkpoint: Checkpoint, config: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object that declares a quantisation, and where it stands."""
    told = {key: config[key] for key in PLACES if not is_neutral(key, config.get(key))}
    for key, value in told.items():
        if not isinstance(value, Mapping):
            raise InputError(
                f"config.json: {key}",
                file=checkpoint.source,
                expected="an object",
                found=f"{value!r:.60}",
            )
        yield f"config.json: {key}", value
    methods = [str(declared.get("quant_method")).lower() for declared in told.values()]
    for file, tool in ((GPTQ, "gptq"), (MODELOPT, "modelopt")):
        text = checkpoint.read_text(file)
        if text is None or (told and not any(method.startswith(tool) for method in methods)):
            continue  # or of weights that are no longer there
        content = read_json(checkpoint.source / file, text)
        if file == MODELOPT and isinstance(content, Mapping):
            content = content.get("quantization")
        if isinstance(content, Mapping):
            yield file, content


def _online(declared: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What of a declaration no weight shows, by its path."""
    method = declared.get("quant_method")
    if method is not None and str(method).lower() not in known("methods"):
        yield "quant_method", method
    for path, value in _nested(declared):
        words = [] if "." in path[-1] else path[-1].lower().split("_")  # a module's name has none
        name = value.get("name") if isinstance(value, Mapping) else value
        is_algorithm = path[0] == "algo_config" and str(name).lower() in known("algorithms")
        is_word = not known("online").isdisjoint(words) and not is_neutral(path[-1], value)
        if is_algorithm or is_word:
            yield ".".join(path), value


def _nested(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of an object, at any depth, by its path."""
    items = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, Mapping) else items:
        yield (*path, str(key)), inner
        yield from _nested(inner, (*path, str(key)))
