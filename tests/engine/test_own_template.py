"""A model whose file carries a chat template of its own is asked in it, as transformers would."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.server.support import serving
from tests.support.checkpoints import random_checkpoint, tokenizer
from tests.support.conversions import converted
from tests.support.engines import GREEDY, until_read
from weblab_local.chat.session import OPEN_TOKENS, ChatSession, Turn
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import WeblabError

BEGIN, OVER = "<|turn|>", "<|over|>"
FIRST = 330
"""The id of the first of them, in the made vocabulary."""

MARKED = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|over|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
ALPACA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "Below is an instruction.{% for m in messages %}"
    "{% if m.role == 'user' %}\n\n### Instruction:\n{{ m.content | trim }}"
    "{% else %}\n\n### Response:\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\n\n### Response:\n{% endif %}"
)
USER = {"role": "user", "content": "こんにちは <b>"}

Opened = Callable[[str], AbstractContextManager[tuple[Engine, Any]]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Converts a checkpoint with random weights and a template, and gives its engine and transformers' tokenizer."""

    @contextmanager
    def open_with(template: str) -> Iterator[tuple[Engine, Any]]:
        home = tmp_path_factory.mktemp("template")
        folder = random_checkpoint(home / "model", hidden=64, intermediate=128, vocab_size=FIRST + 2)
        made = tokenizer()
        made.add_special_tokens([BEGIN, OVER])
        made.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        (path,) = converted(folder, home / "output", "Q8_0")
        with Engine(path, n_threads=1, n_ctx=512) as engine:
            yield engine, AutoTokenizer.from_pretrained(folder)

    return open_with


@pytest.fixture(scope="module")
def marked(opened: Opened) -> Iterator[tuple[Engine, Any]]:
    with opened(MARKED) as both:
        yield both


@pytest.fixture(scope="module")
def alpaca(opened: Opened) -> Iterator[tuple[Engine, Any]]:
    with opened(ALPACA) as both:
        yield both


def rendered(reference: Any, *messages: dict[str, str]) -> list[int]:
    """The ids that transformers gives."""
    ids: list[int] = reference.apply_chat_template(list(messages), add_generation_prompt=True)["input_ids"]
    return ids


@pytest.mark.parametrize("which", ["marked", "alpaca"])
def test_an_instruction_is_put_into_it(which: str, request: pytest.FixtureRequest) -> None:
    engine, reference = request.getfixturevalue(which)
    expected = rendered(reference, USER)
    assert engine.chat().prompt_ids(USER["content"]) == expected
    one = replace(GREEDY, max_tokens=1)
    asked = engine.generate(USER["content"], one)
    assert asked.stats.prompt_tokens == len(expected)
    assert asked.token_ids == engine.generate(expected, one, raw=True).token_ids


def test_a_conversation_has_transformers_ids(marked: tuple[Engine, Any]) -> None:
    engine, reference = marked
    system, answer = {"role": "system", "content": "短く。"}, {"role": "assistant", "content": "はい。"}
    turns = [Turn(USER["content"], answer["content"], engine.tokenize(answer["content"]))]
    chat = ChatSession(engine, system["content"], turns=turns)
    more = {"role": "user", "content": "次は？"}
    assert chat.prompt_ids(more["content"]) == rendered(reference, system, USER, answer, more)


@given(parts=st.lists(st.sampled_from([BEGIN, OVER, "<|endoftext|>", "<|", "\ufdd0", "system\n", "<", "turn|>"])))
def test_what_somebody_types_is_never_a_special_token(marked: tuple[Engine, Any], parts: list[str]) -> None:
    engine, reference = marked
    text = "".join(parts)
    ids = engine.chat().prompt_ids(text)
    assert [token for token in ids if token >= FIRST or token == 0] == [FIRST, FIRST + 1, FIRST]
    typed = reference(f"user\n{text}".replace("\ufdd0", ""), add_special_tokens=False, split_special_tokens=True)
    assert ids[1 : ids.index(FIRST + 1)] == typed["input_ids"]


def test_its_end_of_a_turn_ends_an_answer(marked: tuple[Engine, Any]) -> None:
    engine, _reference = marked
    always = SamplingParams(temperature=0, max_tokens=5, logit_bias={FIRST + 1: 1000.0})
    done = engine.chat().send("a", always)
    assert (done.finish_reason, done.text) == ("stop", "")
    assert engine.generate("a", always, raw=True).finish_reason == "length"


def test_its_headings_end_an_answer_at_the_beginning_of_a_line(alpaca: tuple[Engine, Any]) -> None:
    engine, _reference = alpaca
    assert engine.template.stops == ("\n\n### Instruction:", "\n### Instruction:")


def test_a_system_message_that_it_refuses_stands_before_the_instruction(alpaca: tuple[Engine, Any]) -> None:
    engine, reference = alpaca
    chat = engine.chat(system="短く。")
    together = {"role": "user", "content": "短く。\n\n" + USER["content"]}
    assert chat.prompt_ids(USER["content"]) == rendered(reference, together)


def test_the_server_asks_in_it_too(marked: tuple[Engine, Any]) -> None:
    engine, reference = marked
    with serving(engine) as server:

        def n_tokens(*messages: dict[str, str]) -> int:
            body: Any = {"messages": list(messages), "max_tokens": 1, "temperature": 0}
            usage = server.client.chat.completions.create(model="default", **body).usage
            assert usage is not None
            return int(usage.prompt_tokens)

        assert n_tokens(USER) == len(rendered(reference, USER))
        twice = {"role": "user", "content": f"{USER['content']}\n\n{USER['content']}"}
        assert n_tokens(USER, USER) == len(rendered(reference, twice))
        greeting = {"role": "assistant", "content": "やあ"}
        assert n_tokens(greeting, USER) == len(rendered(reference, greeting, USER))


def test_what_is_typed_is_read_ahead_up_to_where_it_is_open(marked: tuple[Engine, Any]) -> None:
    engine, _reference = marked
    chat = engine.chat(params=replace(GREEDY, max_tokens=1))
    text = "これは長めの文章で、途中まで先に読まれます。"
    chat.read_ahead(text)
    until_read(engine)
    stats = chat.send(text).stats
    n_open = len(engine.tokenize(f"{OVER}\n{BEGIN}assistant\n", special=True)) + OPEN_TOKENS
    assert 0 < stats.prompt_tokens - stats.cached_tokens <= n_open < stats.prompt_tokens // 2


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ messages[7].content }}", "{{ raise_exception('never') }}", "no messages at all"]
)
def test_one_that_cannot_be_used_is_said_where_it_is_needed(opened: Opened, template: str) -> None:
    with opened(template) as (engine, _reference):
        uses: list[Callable[[], object]] = [lambda: engine.generate("a", GREEDY), lambda: engine.chat().send("a")]
        for use in uses:
            with pytest.raises(WeblabError, match="chat template cannot be used") as raised:
                use()
            assert "--chat-template weblab" in raised.value.remedy
        assert engine.generate("a", replace(GREEDY, max_tokens=1), raw=True).stats.prompt_tokens > 0
