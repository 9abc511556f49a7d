"""The prompt is the model card's, byte for byte, from Python and from the GGUF's chat template."""

from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from weblab_local.engine.prompt import CHAT_TEMPLATE, instruction_prompt

CARD = (
    "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。\n\n"
    "### 指示:\n大規模言語モデルについて説明してください。\n\n### 応答:"
)


def render(messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    """Render as transformers' apply_chat_template does."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message: str) -> Any:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    template = environment.from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, add_generation_prompt=add_generation_prompt)


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_one_instruction_is_the_cards_prompt() -> None:
    instruction = "大規模言語モデルについて説明してください。"
    assert instruction_prompt(instruction) == CARD
    assert render([message("user", instruction)]) == CARD


def test_an_instruction_with_an_input_is_the_benchmarks_prompt() -> None:
    assert instruction_prompt("要約してください。", "長い文章。") == (
        "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。\n\n"
        "### 指示:\n要約してください。\n\n### 入力:\n長い文章。\n\n### 応答:\n"
    )


def test_a_conversation_has_its_turns_one_after_the_other() -> None:
    messages = [message("user", "こんにちは"), message("assistant", "こんにちは！"), message("user", "元気？")]
    assert render(messages) == (
        "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。\n\n### 指示:\nこんにちは\n\n"
        "### 応答:こんにちは！\n\n### 指示:\n元気？\n\n### 応答:"
    )


def turns(*texts: str) -> str:
    """What stands after the preamble: instructions that begin with "?", and answers."""
    return "".join(f"\n\n### 指示:\n{text[1:]}" if text.startswith("?") else f"\n\n### 応答:{text}" for text in texts)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("assistant", "やあ"), ("user", "一")], ["やあ", "?一", ""]),
        ([("system", "短く。"), ("assistant", "やあ"), ("user", "一")], ["?短く。", "やあ", "?一", ""]),
        ([("system", "短く。"), ("developer", "丁寧に。"), ("user", "一")], ["?短く。\n\n丁寧に。\n\n一", ""]),
        ([("system", ""), ("user", "一"), ("system", "短く。"), ("user", "二")], ["?一", "?短く。\n\n二", ""]),
        ([("user", "一"), ("assistant", "1"), ("system", "短く。")], ["?一", "1", "?短く。", ""]),
        ([("user", "一"), ("system", "短く。"), ("assistant", "1")], ["?一", "?短く。", "1", ""]),
        ([("system", "短く。")], ["?短く。", ""]),
        ([("user", ""), ("assistant", None), ("user", "二")], ["?", "", "?二", ""]),
        ([("user", [{"type": "text", "text": "一"}, {"type": "text", "text": "二", "x": 1}])], ["?一二", ""]),
    ],
)
def test_conversations_of_any_order(messages: list[tuple[str, Any]], expected: list[str]) -> None:
    preamble = CARD.partition("\n\n")[0]
    assert render([message(role, content) for role, content in messages]) == preamble + turns(*expected)


def test_a_system_message_stands_before_the_first_instruction_only() -> None:
    messages = [
        message("system", "短く答える。"),
        message("user", "一"),
        message("assistant", "1"),
        message("user", "二"),
    ]
    assert render(messages) == (
        "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。\n\n### 指示:\n短く答える。\n\n一\n\n"
        "### 応答:1\n\n### 指示:\n二\n\n### 応答:"
    )


def test_without_a_generation_prompt_the_text_ends_with_the_last_message() -> None:
    messages = [message("user", "一"), message("assistant", "1\n")]
    assert render(messages, add_generation_prompt=False).endswith("### 応答:1\n")


@pytest.mark.parametrize("content", ["  spaces  ", "\n", "", "{{ 1 + 1 }}", "'quoted' \\n", "{% raw %}"])
def test_what_a_user_writes_is_not_changed(content: str) -> None:
    assert render([message("user", content)]) == instruction_prompt(content)


@pytest.mark.parametrize(
    "messages", [[message("tool", "x")], [message("user", [{"type": "image_url", "image_url": {"url": "x"}}])]]
)
def test_what_the_model_cannot_read_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises((jinja2.TemplateError, TypeError)):
        render(messages)
