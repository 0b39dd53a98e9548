"""Chat templates: messages as the text that a model was trained to answer.

A template is a Jinja program that comes with the checkpoint. It runs in Jinja's sandbox, with what
transformers gives templates beside Jinja's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jentropy.checkpoints import open_checkpoint
from jentropy.errors import InputError, said
from jentropy.schema import OBJECT, parse

SETTINGS, TEMPLATE, OLDER = "tokenizer_config.json", "chat_template.jinja", "chat_template.json"
NAME = "default"  # of several templates, the one for chats
TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A checkpoint's chat template.

    Attributes:
      source: in Jinja's language.
      tokens: special tokens that it may name, such as "bos_token".
      file: where it comes from.

    Example:
      >>> source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
      >>> template = ChatTemplate(source=source + "{% if add_generation_prompt %}<me>{% endif %}")
      >>> template.render([{"role": "user", "content": " Hello "}])
      '<user>Hello<me>'
    """

    source: str = field(repr=False)
    tokens: Mapping[str, str] = field(default_factory=dict)
    file: object = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
          messages: each with "role" (system, user, assistant, ...) and "content".
          add_generation_prompt: ends it with what comes before an answer.
          **variables: what else the template reads, such as `tools` or `enable_thinking`.

        Returns:
          Text that has its special tokens: encode it with `add_special_tokens=False`.

        Raises:
          InputError: the template is none, or refuses the messages.
        """
        told = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        try:
            template = _environment().from_string(self.source)
            return template.render({**self.tokens, **told, **variables})
        except Exception as error:  # whatever a program may raise
            raise InputError(f"chat template: {said(error)}", file=self.file) from error


def load_chat_template(path: str | Path) -> ChatTemplate | None:
    """The chat template of a checkpoint.

    Args:
      path: whatever `load` takes.

    Returns:
      That of `chat_template.jinja`, or else of `tokenizer_config.json`; None: it has none.

    Raises:
      InputError: a file that cannot be read.

    Example:
      >>> from jentropy import models
      >>> models.load_chat_template(models.BUNDLED) is None
      True
    """
    checkpoint = open_checkpoint(path)

    def content(file: str) -> Mapping[str, Any]:
        text = checkpoint.read_text(file)
        return {} if text is None else parse(OBJECT, text, checkpoint.source / file)

    settings = content(SETTINGS)
    found, file = checkpoint.read_text(TEMPLATE), TEMPLATE
    for file_told in (OLDER, SETTINGS):
        if found is None:
            found, file = content(file_told).get("chat_template"), file_told
    if isinstance(found, list):  # several, by name
        named = [one for one in found if isinstance(one, Mapping) and one.get("name") == NAME]
        found = named[-1].get("template") if named else None
    if found is None:
        return None
    where = checkpoint.source / file
    if not isinstance(found, str):
        raise InputError("chat_template", file=where, expected="text", found=f"{found!r:.60}")
    return ChatTemplate(source=found, tokens=_tokens(settings), file=where)


def _tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name: plain ones, and those that are told with their settings."""
    found = {}
    for name in TOKENS:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(token, str):
            found[name] = token
    return found


def _environment() -> Any:
    """Jinja with what transformers adds to it."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what the model wrote, for training: here it is just text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        options.setdefault("ensure_ascii", False)
        return json.dumps(value, **options)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = to_json
    made.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda pattern: datetime.now().strftime(pattern),
    }
    return made
