"""`jentropy evaluate`."""

from __future__ import annotations

import argparse
import math
from typing import Any

import jentropy
from jentropy.errors import InputError

from .arguments import BASE, JSON, Arguments, positive
from .console import print_device_note, print_notes, print_table, write_json
from .progress import progress_bar

HELP = "score a model by a text, and against another one: likelihood, KL, flips, batches, samples"


def sizes(text: str) -> tuple[int, ...]:
    """Numbers from 1 on, with commas between them."""
    return tuple(positive(part) for part in text.split(","))


TEXT: Arguments = {
    "--sequences": {"type": positive, "default": 64, "metavar": "N", "help": "of the text"},
    "--length": {
        "type": positive,
        "default": 256,
        "metavar": "N",
        "help": "tokens of each, if the model takes so many",
    },
}
ARGUMENTS: Arguments = {
    "source": {"metavar": "SRC", "help": "a compressed checkpoint or a Hugging Face directory"},
    "--against": {"metavar": "REF", "help": "another of the same vocabulary, as reference"},
    "--text": {
        "metavar": "F",
        "help": "text to score; default: every second module of Python's standard library",
    },
    **TEXT,
    "--batch-sizes": {
        "type": sizes,
        "default": (),
        "metavar": "N,N,...",
        "help": "differences of logits and of greedy continuations over batch sizes",
    },
    "--samples": {
        "type": positive,
        "default": 0,
        "metavar": "N",
        "help": "averages over N sampled continuations of every prompt",
    },
    "--max-new-tokens": {
        "type": positive,
        "default": 64,
        "metavar": "N",
        "help": "of continuations",
    },
    "--activations": {
        "default": "none",
        "metavar": "NAME",
        "help": "simulate inputs of layers in one of int8, fp8, nvfp4, mxfp4, nvfp4-residual, "
        "int4-int8, sparse; default: none",
    },
    "--compute-dtype": {
        "choices": ("bfloat16", "float32"),
        "help": "of activations; default by format",
    },
    **JSON,
    **BASE,
}


def run(arguments: argparse.Namespace) -> int:
    models = jentropy.models
    if len(arguments.batch_sizes) == 1:
        raise InputError("--batch-sizes", expected="two or more", found=arguments.batch_sizes[0])
    if not arguments.quiet:
        print_device_note()

    def loaded(source: str) -> Any:
        with progress_bar(f"load {source}", unit=" weights", quiet=arguments.quiet) as advance:
            return models.load(
                source,
                compute_dtype=arguments.compute_dtype,
                progress=advance,
                base=arguments.base,
            )

    # What is missing is said before a model is read.
    texts = models.texts.texts_of(arguments.text, models.texts.SCORES)
    tokenizer = models.load_tokenizer(arguments.source)
    model = models.activations.simulated(
        loaded(arguments.source),
        arguments.activations,
        jentropy.open_checkpoint(arguments.source, base=arguments.base),
    )
    reference = loaded(arguments.against) if arguments.against else None
    rows = models.texts.token_sequences(
        texts,
        tokenizer,
        model.config,
        sequences=arguments.sequences,
        length=arguments.length,
    )
    with progress_bar("score", unit=" sequences", quiet=arguments.quiet) as advance:
        found = models.evaluation.evaluate(
            model,
            rows,
            reference=reference,
            sizes=arguments.batch_sizes,
            samples=arguments.samples,
            tokens=arguments.max_new_tokens,
            progress=advance,
        )
    if arguments.json:
        told = {
            "source": arguments.source,
            "against": arguments.against,
            "text": arguments.text,
            "activations": arguments.activations,
            "compute_dtype": str(model.compute_dtype),
        }
        write_json(arguments.json, {**told, **found.to_json()})
    if arguments.json != "-" and not arguments.quiet:
        scored = found.likelihood
        print_table(
            f"{arguments.source}: {scored.sequences} sequences, {scored.tokens} tokens",
            ["", "mean", "standard error"],
            _rows(found),
        )
        if scored.sequences < 2:
            print_notes(["one sequence has no standard error"])
    return 0


def _rows(found: Any) -> list[list[str]]:
    """Figures by name, each with its error."""
    scored, drawn = found.likelihood, found.samples
    named = {
        "NLL, nats a token": scored.nll,
        "perplexity": scored.perplexity,
        "NLL of the reference": scored.reference,
        "NLL less the reference's": scored.difference,
        "KL from the reference": scored.kl,
        "top-1 flips": scored.flips,
    }
    if found.agreement:
        title = f"greedy tokens alike, of {found.agreement.of}"
        named[title] = found.agreement.tokens
    rows = [[name, *_told(mean)] for name, mean in named.items() if mean is not None]
    for one in found.batch_sizes:
        rows.append([f"largest logit difference, batch of {one.size}", f"{one.logits:.3g}", ""])
        title = f"greedy tokens alike, of {one.agreement.of}, batch of {one.size}"
        rows.append([title, *_told(one.agreement.tokens)])
    if drawn:
        title = f"{drawn.count} samples of each prompt"
        sampled = {
            "NLL": drawn.nll,
            "length": drawn.length,
            "NLL of the reference's": drawn.reference,
            "tokens alike": drawn.agreement,
        }
        rows += [[f"{title}: {n}", *_told(mean)] for n, mean in sampled.items() if mean is not None]
    return rows


def _told(mean: Any) -> list[str]:
    return [f"{mean.value:.5g}", "" if mean.error == math.inf else f"{mean.error:.2g}"]
