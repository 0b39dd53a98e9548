"""`jentropy generate`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import jentropy
from jentropy.checkpoints import open_checkpoint
from jentropy.checkpoints.contents import GENERATION
from jentropy.errors import InputError
from jentropy.schema import OBJECT, parse

from .arguments import BASE, Arguments
from .console import print_device_note, print_notes, write_json
from .progress import is_terminal, progress_bar

HELP = "continue a prompt, or chat, with the model of a checkpoint, from its compressed weights"
ONCE, TURN = 64, 1024  # new tokens of a prompt that was given, and of one that was typed
SAMPLING: Arguments = {
    "--temperature": {"type": float, "metavar": "T", "help": "0 is greedy"},
    "--top-k": {"type": int, "metavar": "K", "help": "draw from the K likeliest tokens"},
    "--top-p": {
        "type": float,
        "metavar": "P",
        "help": "draw from the fewest likeliest tokens whose share is P",
    },
    "--min-p": {
        "type": float,
        "metavar": "P",
        "help": "draw from tokens at least P times as likely as the likeliest",
    },
    "--repetition-penalty": {
        "type": float,
        "metavar": "R",
        "help": "more than 1: rather not what came before",
    },
}
ARGUMENTS: Arguments = {
    "checkpoint": {
        "metavar": "DST",
        "help": "a compressed checkpoint or a Hugging Face directory",
    },
    "--prompt": {
        "metavar": "TEXT",
        "help": "default: what is typed, turn by turn; in a pipe, all that comes",
    },
    "--chat": {
        "action": argparse.BooleanOptionalAction,
        "help": "prompts are messages, by the checkpoint's chat template; default: if they are "
        "typed and it has one",
    },
    "--system": {"metavar": "TEXT", "help": "a chat's first message, of the system"},
    "--max-new-tokens": {
        "type": int,
        "metavar": "N",
        "help": f"default: {ONCE}, {TURN} in a conversation",
    },
    **SAMPLING,
    "--stop": {
        "action": "append",
        "default": [],
        "metavar": "TEXT",
        "help": "ends an answer; may be given several times",
    },
    "--seed": {"type": int, "default": 0},
    "--compute-dtype": {
        "choices": ("bfloat16", "float32"),
        "help": "of activations; default by format",
    },
    **BASE,
    "--json": {"action": "store_true", "help": "print prompt, text, token ids and logprobs"},
}


def run(arguments: argparse.Namespace) -> int:
    models = jentropy.models
    if not arguments.quiet:
        print_device_note()
    typed = arguments.prompt is None and is_terminal(sys.stdin)
    if typed and arguments.json:
        raise InputError("--json", expected="a prompt", found="none")
    template = _template(arguments, typed)
    sampling = _sampling(arguments)
    tokenizer = models.load_tokenizer(arguments.checkpoint)
    with progress_bar("load", unit=" weights", quiet=arguments.quiet) as advance:
        model = models.load(
            arguments.checkpoint,
            compute_dtype=arguments.compute_dtype,
            progress=advance,
            base=arguments.base,
        )
    session = models.Session(
        model, tokenizer, sampling=sampling, seed=arguments.seed, stop=arguments.stop
    )
    talk = Talk(session, template, arguments)
    if typed:
        return _converse(talk)
    prompt = sys.stdin.read() if arguments.prompt is None else arguments.prompt
    if arguments.json:
        text = "".join(talk.answer(prompt))
        answer = session.answer
        written = {
            "prompt": prompt,
            "text": text if template else tokenizer.decode(answer.prompt_ids) + text,
            "ids": answer.prompt_ids + answer.ids,
            "new_ids": answer.ids,
            "logprobs": answer.logprobs,
        }
        write_json("-", written)
        return 0
    pieces = talk.answer(prompt)
    first = next(pieces, "")  # what cannot be continued is not printed either
    print("" if template else tokenizer.decode(session.answer.prompt_ids), end=first, flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    talk.summarize()
    return 0


class Talk:
    """Prompts and answers, as turns of a chat or as one text.

    Args:
      session: has the model.
      template: of the chat; None: prompts are continued as they are.
      arguments: of the command.
    """

    def __init__(self, session: Any, template: Any, arguments: argparse.Namespace):
        self.session, self.template, self.quiet = session, template, arguments.quiet
        self.most, self.system = arguments.max_new_tokens, arguments.system
        self.begin()

    def begin(self) -> None:
        """Forgets all turns."""
        system = self.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.ids: list[int] = []

    def answer(self, prompt: str, most: int | None = None) -> Generator[str, None, None]:
        """What the model makes of a prompt, as it comes.

        Args:
          most: new tokens, if the command was told none, and no more than there are positions.
        """
        models, session = jentropy.models, self.session
        if self.template is None:
            ids = self.ids + models.encode(session.tokenizer, prompt, special=not self.ids)
        else:
            self.messages.append({"role": "user", "content": prompt})
            text = self.template.render(self.messages)
            ids = models.encode(session.tokenizer, text, special=False)
        new = ONCE if most is None else most
        new = new if self.most is None else self.most
        if most is not None:
            new = max(1, min(new, session.model.config.max_position_embeddings - len(ids)))
        try:
            yield from session.stream(ids, new)
        finally:  # an answer that Ctrl-C ended is one too
            self.ids = ids + session.answer.ids
            self.messages.append({"role": "assistant", "content": session.answer.text})

    def summarize(self) -> None:
        """Says how fast the last answer was, and what it read."""
        answer, read = self.session.answer, jentropy.models.bytes_per_token(self.session.model)
        speed = (len(answer.ids) - 1) / answer.seconds if answer.seconds else 0
        if sys.stderr is not None and not self.quiet:
            print(
                f"tokens: {len(answer.prompt_ids)} read, the first made after "
                f"{answer.first_seconds:.2f} s; {len(answer.ids)} made, {speed:.1f} a second; "
                f"{read:,} bytes of weights read for each",
                file=sys.stderr,
            )


def _converse(talk: Talk) -> int:
    """Turns that are typed, until Ctrl-D. Ctrl-C ends an answer, not the program."""
    with suppress(ImportError):  # lines that are typed can be edited
        importlib.import_module("readline")
    what = "messages" if talk.template else "text that is continued"
    print_notes([f"type {what}; Ctrl-C ends an answer, Ctrl-D the program"], quiet=talk.quiet)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        if not prompt.strip():
            continue
        try:
            with _interruptible() as interrupted, closing(talk.answer(prompt, TURN)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
                    if interrupted.is_set():
                        break
        except InputError as error:
            print_notes([f"{error}; the conversation begins anew"])
            talk.begin()
            continue
        print()
        talk.summarize()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """What Ctrl-C sets, so that it tears no computation; a second one ends the program."""
    interrupted = threading.Event()

    def interrupt(*_: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _template(arguments: argparse.Namespace, typed: bool) -> Any:
    """The chat template, where prompts are messages."""
    wanted = arguments.chat or arguments.system is not None
    if not wanted and (arguments.chat is False or not typed):
        return None
    template = jentropy.models.load_chat_template(arguments.checkpoint)
    if wanted and template is None:
        raise InputError("no chat template", file=arguments.checkpoint, hint="--chat needs one")
    return template


def _sampling(arguments: argparse.Namespace) -> Any:
    """What the command was told, and beside that `generation_config.json`, as elsewhere."""
    checkpoint = open_checkpoint(arguments.checkpoint)
    text = checkpoint.read_text(GENERATION)
    config = {} if text is None else parse(OBJECT, text, checkpoint.source / GENERATION)
    names = [flag.removeprefix("--").replace("-", "_") for flag in SAMPLING]
    return jentropy.models.sampling_of(config, **{name: getattr(arguments, name) for name in names})
