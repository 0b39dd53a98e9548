"""Text in turns: chat templates as transformers renders them, pieces of text, conversations."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import sys

import pytest
from tokenizers import Tokenizer

from jentropy import models
from jentropy.cli import main as cli
from jentropy.errors import InputError
from jentropy.models.decoding import Pieces

pytestmark = pytest.mark.usefixtures("compiled_quickly")

QWEN = """{%- if tools %}{{- '<|im_start|>system\\n' }}{% for tool in tools %}{{- tool | tojson }}
{% endfor %}{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{{- raise_exception('no tools here') }}{%- endif %}
    {%- if message.role == 'assistant' and loop.index0 < ns.last %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- else %}
        {%- set content = message.content %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- generation %}{{- content }}{%- endgeneration %}{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA = """{{- bos_token }}
{%- for message in messages %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
    {%- if strftime_now is defined and loop.first %}
        {%- set now = strftime_now('%Y') | int > 2000 %}{{- 'Now: ' ~ now ~ '\\n' }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + eos_token }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{% endif %}
"""
MESSAGES = [
    {"role": "system", "content": "Be brief <&>."},
    {"role": "user", "content": "Hi é"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"},
    {"role": "user", "content": " Bye\n"},
]
CHATML = (
    "<|im_start|>system\nBe brief <&>.<|im_end|>\n<|im_start|>user\nHi é<|im_end|>\n"
    "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n Bye\n<|im_end|>\n"
    "<|im_start|>assistant\n"
)
HEADERS = (
    "<s>Now: True\n"
    "<|start_header_id|>system<|end_header_id|>\n\nBe brief <&>.</s>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi é</s>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n<think>\nhm\n</think>\n\nHello!</s>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye</s>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n\n"
)  # all by transformers 5.24
SIMPLE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def bundled():
    return models.load(models.BUNDLED), models.load_tokenizer(models.BUNDLED)


@pytest.fixture
def chatting(tmp_path):
    """The bundled model with a chat template."""
    folder = shutil.copytree(models.BUNDLED, tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": SIMPLE}))
    return folder


def test_templates_are_rendered_as_by_transformers():
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    qwen, llama = (models.ChatTemplate(source=s, tokens=tokens) for s in (QWEN, LLAMA))
    assert qwen.render(MESSAGES) == CHATML
    assert qwen.render(MESSAGES, enable_thinking=False) == CHATML + "<think>\n\n</think>\n\n"
    assert llama.render(MESSAGES) == HEADERS
    assert qwen.render(MESSAGES, tools=[{"é": "<"}]).startswith('<|im_start|>system\n{"é": "<"}')
    with pytest.raises(InputError, match="no tools here"):
        qwen.render([{"role": "tool", "content": ""}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for m in messages %}",
        "{{ range(10 ** 9) | list }}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a b' | truncate(-9) }}",
        "{{ raise_exception('a' * 9999) }}",
    ],
)
def test_templates_that_do_more_than_text_are_refused(source):
    with pytest.raises(InputError, match="chat template: ") as told:
        models.ChatTemplate(source=source).render(MESSAGES)
    assert len(str(told.value)) < 300


def test_where_templates_lie(chatting):
    assert models.load_chat_template(models.BUNDLED) is None
    assert models.load_chat_template(chatting).source == SIMPLE
    settings = chatting / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    bos = {"content": "<s>", "lstrip": False}
    settings.write_text(json.dumps({"chat_template": named, "bos_token": bos, "eos_token": None}))
    found = models.load_chat_template(chatting)
    assert (found.source, found.tokens) == ("y", {"bos_token": "<s>"})
    (chatting / "chat_template.jinja").write_text("z")
    assert models.load_chat_template(chatting).source == "z"
    (chatting / "chat_template.jinja").unlink()
    settings.write_text('{"chat_template": [{"name": [], "template": "x"}]}')
    assert models.load_chat_template(chatting) is None
    settings.write_text("[]")
    with pytest.raises(InputError, match=r"tokenizer_config\.json.*an object"):
        models.load_chat_template(chatting)
    settings.write_text('{"chat_template": 3}')
    with pytest.raises(InputError, match=r"tokenizer_config\.json: chat_template: expected text"):
        models.load_chat_template(chatting)


def test_a_tokenizer_that_breaks_off_is_an_error():
    told = json.loads(models.load_tokenizer(models.BUNDLED).to_str())
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    told["pre_tokenizer"] = split | {"pattern": {"Regex": "(a+)+$"}}
    with pytest.raises(InputError, match="cannot encode a text"):
        models.encode(Tokenizer.from_str(json.dumps(told)), "a" * 40 + "b")


def test_pieces_are_whole_characters(bundled):
    tokenizer = bundled[1]
    text = "né€😀 = 'x'  # 中文\n"
    ids = tokenizer.encode(text).ids
    assert len(ids) > len(text)
    pieces = Pieces(tokenizer)
    found = [pieces.add([token]) for token in ids]
    assert "".join(found) == pieces.text == text
    assert not any("\ufffd" in piece for piece in found)
    cut = Pieces(tokenizer)
    told = "".join(cut.add([token]) for token in ids[:4])  # within the euro sign
    assert told == "né"
    assert cut.flush() == "\ufffd"
    invalid = Pieces(tokenizer)  # bytes that never become text do not hold it up for ever
    assert "\ufffd" in "".join(invalid.add([token]) for token in ids[2:3] * 12)


def test_stop_strings_are_found_across_tokens(bundled):
    tokenizer = bundled[1]
    ids = tokenizer.encode("return self.value\n\nclass").ids
    pieces = Pieces(tokenizer, stops=["\n\n", ".val", "never"])
    assert "".join(pieces.add([token]) for token in ids) == "return self"
    assert pieces.ended
    waits = Pieces(tokenizer, stops=["self.values"])
    told = "".join(waits.add([token]) for token in ids[:5])
    assert "self" not in told
    assert told + waits.flush() == tokenizer.decode(ids[:5])


def test_a_session_reads_only_what_is_new(bundled, monkeypatch):
    model, tokenizer = bundled
    read = []
    from jentropy.models import session as module

    def counted(model, prompts, **options):
        read.append(len(prompts[0]))
        return models.prefill(model, prompts, **options)

    monkeypatch.setattr(module, "prefill", counted)
    session = models.Session(model, tokenizer, stop=[")"])
    first = models.encode(tokenizer, "def f(x):\n    return os.path.join(")
    "".join(session.stream(first, 12))
    answer = session.answer
    assert len(answer.ids) == len(answer.logprobs) > 0
    assert max(answer.logprobs) <= 0
    following = first + answer.ids + models.encode(tokenizer, "\n\nclass A:")
    text = "".join(session.stream(following, 12))
    fresh = models.Session(model, tokenizer, stop=[")"])
    assert "".join(fresh.stream(following, 12)) == text
    assert "".join(session.stream(following[:9], 4)) == "".join(fresh.stream(following[:9], 4))
    assert read[0] == len(first)
    assert read[1] < len(following) - len(first)
    assert read[2] == len(following)
    assert read[3:] == [1, 1]  # a part of what it has, of which the last token is read again
    ids, whole = models.continue_text(
        model, tokenizer, tokenizer.decode(following), max_new_tokens=12, stop=[")"]
    )
    assert whole == tokenizer.decode(following) + text
    assert ids == following + fresh_ids(model, tokenizer, following)


def fresh_ids(model, tokenizer, ids) -> list[int]:
    session = models.Session(model, tokenizer, stop=[")"])
    "".join(session.stream(ids, 12))
    return session.answer.ids


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(monkeypatch, capsys, stdin, *argv) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", stdin)
    code = cli.main(["generate", *map(str, argv)])
    return code, *capsys.readouterr()


def test_a_conversation_on_a_terminal(chatting, monkeypatch, capsys):
    prompts, stream = [], models.Session.stream

    def interrupted(self, prompt, most):
        prompts.append(self.tokenizer.decode(prompt))
        for i, piece in enumerate(stream(self, prompt, most)):
            if i == 1 and len(prompts) == 1:
                signal.raise_signal(signal.SIGINT)  # Ctrl-C in the first answer
            yield piece

    monkeypatch.setattr(models.Session, "stream", interrupted)
    argv = (chatting, "--system", "Code.", "--max-new-tokens", 20, "--temperature", 0.7)
    code, out, err = run(monkeypatch, capsys, Terminal("import os\n\nx = 1\n"), *argv)
    assert code == 0
    assert prompts[0] == "[system]Code.\n[user]import os\n[assistant]"
    answers = [part.removesuffix("\n") for part in out.split("> ")[1:]]
    assert prompts[1] == f"{prompts[0]}{answers[0]}\n[user]x = 1\n[assistant]"
    assert len(re.findall(r"tokens: \d+ read, .* \d+ made, [\d.]+ a second", err)) == 2
    size = models.bytes_per_token(models.load(chatting))
    assert f"{size:,} bytes of weights read for each" in err


def test_prompts_from_a_pipe_and_clear_refusals(chatting, monkeypatch, capsys):
    short = ("--max-new-tokens", 6, "--stop", ".")
    code, out, err = run(monkeypatch, capsys, io.StringIO("import os"), chatting, *short, "-q")
    assert (code, err) == (0, "")
    assert out.startswith("import os")
    code, out, _ = run(
        monkeypatch,
        capsys,
        io.StringIO(),
        chatting,
        "--prompt",
        "x = 1",
        "--chat",
        *short,
        "--json",
    )
    told = json.loads(out)
    assert code == 0
    assert told["ids"][-len(told["new_ids"]) :] == told["new_ids"]
    assert len(told["logprobs"]) == len(told["new_ids"])
    assert "[user]" not in told["text"]
    for argv, why in (
        ((models.BUNDLED, "--prompt", "x", "--system", "y"), "no chat template"),
        ((chatting, "--prompt", "x", "--top-p", 3), "top_p: expected 0 to 1, found 3.0"),
        ((chatting,), "at least one token, found ''"),
        ((chatting, "--prompt", "x", "--max-new-tokens", 999), "at most 512 positions"),
    ):
        code, out, err = run(monkeypatch, capsys, io.StringIO(), *argv, "-q")
        assert (code, out) == (2, "")
        assert why in err
    code, _, err = run(monkeypatch, capsys, Terminal(), chatting, "--json", "-q")
    assert code == 2
    assert "--json: expected a prompt" in err


def test_a_conversation_without_room_begins_anew(chatting, monkeypatch, capsys):
    long = "import os " * 300
    stdin = Terminal(f"{long}\nimport sys\n")
    code, out, err = run(monkeypatch, capsys, stdin, chatting, "--no-chat", "--max-new-tokens", 3)
    assert code == 0
    assert "at most 512 positions" in err
    assert "begins anew" in err
    assert out.count(">") == 3
