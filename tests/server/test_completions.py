"""/v1/completions through the official client: text that goes on, without a template."""

from typing import Any

import openai
import pytest

from tests.server.support import Running
from tests.support import reference
from tests.support.engines import LONG_ANSWERS, PAIRS
from weblab_local.engine.prompt import instruction_prompt

LONG = LONG_ANSWERS[0]


def ask(server: Running, prompt: Any, **options: Any) -> Any:
    create: Any = server.client.completions.create
    return create(**{"model": "default", "prompt": prompt, "temperature": 0, "max_tokens": 200} | options)


def test_a_text_goes_on_as_it_is(server: Running) -> None:
    done = ask(server, instruction_prompt(LONG.instruction))
    assert (done.object, done.choices[0].text, done.choices[0].finish_reason) == (
        "text_completion",
        LONG.response,
        "stop",
    )
    assert done.usage.prompt_tokens == len(reference.encode(LONG.prompt))


def test_token_ids_are_a_prompt_too(server: Running) -> None:
    ids = reference.encode(LONG.prompt)
    assert ask(server, ids).choices[0].text == LONG.response
    assert [choice.text for choice in ask(server, [ids, reference.encode(PAIRS[0].prompt)]).choices] == [
        LONG.response,
        PAIRS[0].response,
    ]


def test_several_prompts_with_several_answers_each(server: Running) -> None:
    pairs = PAIRS[:3]
    done = ask(server, [pair.prompt for pair in pairs], n=2)
    assert [choice.text for choice in done.choices] == [pair.response for pair in pairs for _ in range(2)]
    assert [choice.index for choice in done.choices] == list(range(6))
    assert done.usage.prompt_tokens == sum(len(reference.encode(pair.prompt)) for pair in pairs)


def test_the_default_is_openais_sixteen_tokens(server: Running) -> None:
    assert ask(server, LONG.prompt, max_tokens=None).usage.completion_tokens == 16


def test_a_stream_with_log_probabilities(server: Running) -> None:
    whole = ask(server, LONG.prompt, logprobs=2).choices[0].logprobs
    text, offsets, tokens, logprobs = "", [], [], []
    for chunk in ask(server, LONG.prompt, logprobs=2, stream=True):
        text += chunk.choices[0].text
        if chunk.choices[0].logprobs.tokens:
            offsets += chunk.choices[0].logprobs.text_offset
            tokens += chunk.choices[0].logprobs.tokens
            logprobs += chunk.choices[0].logprobs.token_logprobs

    assert text == LONG.response
    assert (offsets, tokens) == (whole.text_offset, whole.tokens)
    assert logprobs == pytest.approx(whole.token_logprobs, abs=1e-3)
    whole_tokens = [(o, token) for o, token in zip(offsets, tokens, strict=True) if not token.startswith("bytes:")]
    assert whole_tokens
    assert all(text[offset:].startswith(token) for offset, token in whole_tokens)
    assert all(len(top) == 2 for top in whole.top_logprobs)


def test_tokens_that_are_no_whole_characters_have_names_of_their_own(server: Running) -> None:
    done = ask(server, LONG.prompt, logprobs=5, temperature=2, seed=1, max_tokens=60).choices[0]
    entries = list(zip(done.logprobs.tokens, done.logprobs.token_logprobs, done.logprobs.top_logprobs, strict=True))
    assert all(len(top) == 5 for _token, _logprob, top in entries)
    assert all(top[token] == logprob for token, logprob, top in entries if token in top)
    assert any(token.startswith("bytes:") for _token, _logprob, top in entries for token in top)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [("", None), ([], None), ([[]], None), (["", "x"], None), ([99999], None), ([-1], None), (["x"] * 17, None)],
)
def test_prompts_that_are_none(server: Running, prompt: Any, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, prompt)
    assert (refused.value.code, refused.value.param) == ("invalid_value", param)


def test_mixed_prompts_are_refused_by_name(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, ["x", [5]])
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("option", [{"best_of": 3}, {"suffix": "x"}, {"extra_body": {"grammar": "x"}}])
def test_what_is_not_supported_is_refused_by_name(server: Running, option: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, "x", **option)
    assert (refused.value.code, refused.value.param) == (
        "unsupported_parameter",
        next(iter(option.get("extra_body", option))),
    )
