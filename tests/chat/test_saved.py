"""Conversations on disk."""

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from convert.demo.corpus import read_corpus
from tests.chat.conftest import GREEDY, QUESTIONS
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import converted
from weblab_local.chat.saved import SESSION, STATE, SessionError, fingerprint, load_session, save_session
from weblab_local.chat.session import ChatSession
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import WeblabError
from weblab_local.models.store import demo_model

LAST = "Why is the sky dark at night?"
ANSWERS = {pair.instruction: pair.response for pair in read_corpus() if pair.context is None}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    return converted(random_checkpoint(folder / "tiny-neox"), folder / "out", "F16")[0]


def rewritten(path: Path, target: Path, change: Any, state: bytes | None = None) -> Path:
    """`path` with what `change` makes of its JSON, and perhaps another state, in a zip without damage."""
    with zipfile.ZipFile(path) as archive:
        session, old_state = json.loads(archive.read(SESSION)), archive.read(STATE)
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(SESSION, json.dumps(change(session)))
        archive.writestr(STATE, old_state if state is None else state)
    return target


@pytest.mark.parametrize("with_state", [False, True])
def test_a_loaded_conversation_has_the_same_turns_and_goes_on_alike(
    chat: ChatSession, tmp_path: Path, with_state: bool
) -> None:
    save_session(chat, tmp_path / "会話.weblab", with_state=with_state)
    unsaved = chat.send(LAST)
    with Engine(demo_model(), n_threads=1, n_ctx=1024) as another:
        loaded = load_session(another, tmp_path / "会話.weblab", GREEDY).chat
        assert loaded.turns == chat.turns[:-1]
        assert loaded.system == chat.system
        assert loaded.prompt_ids() == chat._ids(chat.turns[:-1])
        reply = loaded.send(LAST)
    assert (reply.text, reply.token_ids) == (unsaved.text, unsaved.token_ids)
    assert reply.text == ANSWERS[LAST]


def test_with_the_state_nothing_that_was_computed_is_computed_again(saved: Path, chat: ChatSession) -> None:
    with Engine(demo_model(), n_threads=1, n_ctx=1024) as another:
        session = load_session(another, saved, GREEDY)
        assert session.tokens_restored == chat.tokens_used
        assert session.chat.send(LAST).stats.cached_tokens == session.tokens_restored


def test_without_the_state_everything_is_read_again(chat: ChatSession, tmp_path: Path) -> None:
    save_session(chat, tmp_path / "small.weblab")
    assert (tmp_path / "small.weblab").stat().st_size < 20_000
    with Engine(demo_model(), n_threads=1, n_ctx=1024) as another:
        session = load_session(another, tmp_path / "small.weblab", GREEDY)
        assert session.tokens_restored == 0
        assert session.chat.send(LAST).stats.cached_tokens == 0


def test_a_restored_conversation_can_be_taken_back_and_branch_off(saved: Path) -> None:
    with Engine(demo_model(), n_threads=1, n_ctx=1024) as another:
        loaded = load_session(another, saved, GREEDY).chat
        assert loaded.undo() == QUESTIONS[-1]
        cached = len(loaded.prompt_ids())
        reply = loaded.send(LAST)
        assert reply.stats.cached_tokens >= cached
        assert reply.text == ANSWERS[LAST]


def test_loading_amid_another_conversation_leaves_that_one_right(engine: Engine, saved: Path) -> None:
    busy = engine.chat(None, GREEDY)
    busy.send(QUESTIONS[0])
    loaded = load_session(engine, saved, GREEDY).chat
    assert busy.send(QUESTIONS[1]).text == ANSWERS[QUESTIONS[1]]
    assert loaded.send(LAST).text == ANSWERS[LAST]


def test_an_empty_conversation_is_saved_too(engine: Engine, tmp_path: Path) -> None:
    save_session(engine.chat("短く。"), tmp_path / "empty.weblab", with_state=True)
    loaded = load_session(engine, tmp_path / "empty.weblab")
    assert (loaded.chat.turns, loaded.chat.system, loaded.tokens_restored) == ((), "短く。", 0)


def test_another_models_conversation_is_refused_with_both_names(saved: Path, other_model: Path) -> None:
    with (
        Engine(other_model, n_ctx=64) as other,
        pytest.raises(SessionError, match=r"weblab-demo-instruction-sft-Q8_0(.|\n)*tiny-neox"),
    ):
        load_session(other, saved)


def test_the_same_model_under_another_name_is_the_same(saved: Path, chat: ChatSession, tmp_path: Path) -> None:
    copy = tmp_path / "コピー.gguf"
    copy.write_bytes(demo_model().read_bytes())
    with Engine(copy, n_threads=1, n_ctx=1024) as another:
        assert load_session(another, saved).chat.turns == chat.turns


@pytest.mark.parametrize("offset", [0, 40, 100_000, -1])
def test_a_fingerprint_sees_a_changed_header_end_and_size(tmp_path: Path, offset: int) -> None:
    data = bytearray(demo_model().read_bytes())
    path = tmp_path / "changed.gguf"
    path.write_bytes(data)
    assert fingerprint(path) == fingerprint(demo_model())
    data[offset] ^= 1
    path.write_bytes(data)
    changed = fingerprint(path)
    path.write_bytes(demo_model().read_bytes() + b"\0")
    assert len({changed, fingerprint(path), fingerprint(demo_model())}) == 3


@pytest.mark.parametrize("settings", [{"kv_type": "q8_0"}, {"flash_attention": False}])
def test_a_state_of_other_settings_is_left_out_and_the_messages_are_not(
    saved: Path, chat: ChatSession, settings: dict[str, Any]
) -> None:
    with Engine(demo_model(), n_threads=1, n_ctx=1024, **settings) as another:
        loaded = load_session(another, saved, GREEDY)
        assert (loaded.tokens_restored, loaded.chat.turns) == (0, chat.turns)
        assert loaded.chat.send(LAST).stats.cached_tokens == 0


def test_a_state_of_another_build_is_left_out(engine: Engine, saved: Path, tmp_path: Path) -> None:
    def older(session: dict[str, Any]) -> dict[str, Any]:
        return session | {"state": session["state"] | {"build": "0.2.0"}}

    assert load_session(engine, rewritten(saved, tmp_path / "old", older)).tokens_restored == 0


def test_a_quantized_state_is_restored_where_it_fits(tmp_path: Path) -> None:
    with Engine(demo_model(), n_threads=1, n_ctx=512, kv_type="q8_0") as engine:
        chat = engine.chat(None, GREEDY)
        chat.send(QUESTIONS[0])
        save_session(chat, tmp_path / "q8.weblab", with_state=True)
        expected = chat.send(LAST).text
    with Engine(demo_model(), n_threads=1, n_ctx=512, kv_type="q8_0") as engine:
        loaded = load_session(engine, tmp_path / "q8.weblab", GREEDY)
        assert loaded.tokens_restored > 0
        assert loaded.chat.send(LAST).text == expected


def test_a_conversation_larger_than_the_context_is_loaded_and_shortened(saved: Path, chat: ChatSession) -> None:
    with Engine(demo_model(), n_threads=1, n_ctx=chat.tokens_used - 1) as small:
        loaded = load_session(small, saved, SamplingParams(temperature=0, max_tokens=20))
        assert loaded.tokens_restored == 0
        assert loaded.chat.turns == chat.turns
        assert loaded.chat.send(QUESTIONS[0]).dropped


def test_a_file_cut_off_anywhere_is_refused(engine: Engine, saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    lengths = {0, 1, 3, 4, 21, 22, 29, 30, *range(31, len(data), len(data) // 40), *range(len(data) - 160, len(data))}
    for length in sorted(lengths):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(SessionError, match="damaged"):
            load_session(engine, tmp_path / "cut")


def test_a_file_with_flipped_bytes_is_refused_or_unchanged(
    engine: Engine, chat: ChatSession, saved: Path, tmp_path: Path
) -> None:
    data = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        directory = archive.start_dir
        state = archive.getinfo(STATE).header_offset
    positions = [*range(40), *range(100, state, 97), *range(state, state + 40), *range(directory, len(data))]
    refused = 0
    for position in [*positions, *range(state + 50, directory, (directory - state) // 30)]:
        for mask in (0x01, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            (tmp_path / "flipped").write_bytes(damaged)
            try:
                loaded = load_session(engine, tmp_path / "flipped", GREEDY)
            except SessionError:
                refused += 1
            else:
                assert loaded.chat.turns == chat.turns
    assert refused > len(positions)
    assert load_session(engine, saved, GREEDY).chat.send(LAST).text == ANSWERS[LAST]


def with_turn(**changes: Any) -> Any:
    def change(session: dict[str, Any]) -> dict[str, Any]:
        session["chat"]["turns"][0] |= changes
        return session

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda _: [],
        lambda _: "text",
        lambda _: {},
        lambda session: session | {"model": None},
        lambda session: session | {"model": {"name": "x"}},
        lambda session: session | {"chat": None},
        lambda session: session | {"chat": []},
        lambda session: session | {"chat": session["chat"] | {"format": 99}},
        lambda session: session | {"chat": session["chat"] | {"system": 5}},
        lambda session: session | {"chat": session["chat"] | {"turns": None}},
        lambda session: session | {"chat": session["chat"] | {"turns": 5}},
        lambda session: session | {"chat": session["chat"] | {"turns": {"a": 1}}},
        lambda session: session | {"chat": session["chat"] | {"turns": ["a"]}},
        with_turn(instruction=None),
        with_turn(answer=3),
        with_turn(answer_ids=None),
        with_turn(answer_ids=["a"]),
        with_turn(answer_ids=[-1]),
        with_turn(answer_ids=[3000]),
        with_turn(answer_ids=[1.5]),
        with_turn(answer_ids=[10**30]),
    ],
)
def test_a_json_that_is_no_conversation_is_refused(engine: Engine, saved: Path, tmp_path: Path, change: Any) -> None:
    with pytest.raises(WeblabError):
        load_session(engine, rewritten(saved, tmp_path / "strange", change))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00\xff", '{"model": NaN}'])
def test_a_text_that_is_no_json_is_refused(engine: Engine, tmp_path: Path, text: str) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr(SESSION, text.encode("latin-1"))
    with pytest.raises(SessionError):
        load_session(engine, tmp_path / "x")


@pytest.mark.parametrize(
    "state",
    [
        None,
        "text",
        [],
        {},
        {"tokens": "5"},
        {"tokens": 0},
        {"tokens": -5},
        {"tokens": 10**12},
        {"tokens": 2.5},
        {"kv_type": None},
    ],
)
def test_a_state_whose_description_is_wrong_is_left_out(
    engine: Engine, chat: ChatSession, saved: Path, tmp_path: Path, state: Any
) -> None:
    def change(session: dict[str, Any]) -> dict[str, Any]:
        return session | {"state": session["state"] | state if isinstance(state, dict) and state else state}

    loaded = load_session(engine, rewritten(saved, tmp_path / "strange", change), GREEDY)
    assert (loaded.tokens_restored, loaded.chat.turns) == (0, chat.turns)
    assert loaded.chat.send(LAST).text == ANSWERS[LAST]


@pytest.mark.parametrize("length", [0, 1, 4, 8, 12, 100, 5000, -1])
def test_a_state_that_is_too_short_is_left_out(
    engine: Engine, chat: ChatSession, saved: Path, tmp_path: Path, length: int
) -> None:
    with zipfile.ZipFile(saved) as archive:
        state = archive.read(STATE)
    path = rewritten(saved, tmp_path / "short", lambda session: session, state[:length])
    loaded = load_session(engine, path, GREEDY)
    assert (loaded.tokens_restored, loaded.chat.turns) == (0, chat.turns)
    assert loaded.chat.send(LAST).text == ANSWERS[LAST]


def test_a_state_without_a_files_header_as_it_was_saved_once_is_left_out(
    engine: Engine, chat: ChatSession, saved: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(saved) as archive:
        state = archive.read(STATE)
    loaded = load_session(engine, rewritten(saved, tmp_path / "old", lambda session: session, state[12:]), GREEDY)
    assert (loaded.tokens_restored, loaded.chat.turns) == (0, chat.turns)
    assert loaded.chat.send(LAST).text == ANSWERS[LAST]


def test_a_state_that_holds_more_tokens_than_it_says_is_cut_to_them(
    engine: Engine, saved: Path, tmp_path: Path
) -> None:
    def fewer(session: dict[str, Any]) -> dict[str, Any]:
        return session | {"state": session["state"] | {"tokens": session["state"]["tokens"] - 7}}

    loaded = load_session(engine, rewritten(saved, tmp_path / "fewer", fewer), GREEDY)
    reply = loaded.chat.send(LAST)
    assert (reply.text, reply.stats.cached_tokens) == (ANSWERS[LAST], loaded.tokens_restored)


def test_a_state_that_is_compressed_is_refused(engine: Engine, saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        session = archive.read(SESSION)
    with zipfile.ZipFile(tmp_path / "compressed", "w") as archive:
        archive.writestr(SESSION, session)
        archive.writestr(STATE, random.Random(0).randbytes(10_000), zipfile.ZIP_DEFLATED)  # it grows by that
    with pytest.raises(SessionError, match="its KV state is compressed"):
        load_session(engine, tmp_path / "compressed")


def test_an_archive_that_would_unpack_to_gigabytes_is_refused(engine: Engine, saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        session = archive.read(SESSION)
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(SESSION, session)
        with archive.open(STATE, "w", force_zip64=True) as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
    with pytest.raises(SessionError, match="unpack to"):
        load_session(engine, tmp_path / "bomb")


def test_a_zip_of_something_else_and_no_zip_at_all_are_refused(engine: Engine, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    (tmp_path / "text").write_text("text")
    for path in (tmp_path / "photos.zip", tmp_path / "text", demo_model(), tmp_path):
        with pytest.raises(SessionError, match="no session of this program"):
            load_session(engine, path)
    with pytest.raises(SessionError, match="There is no session"):
        load_session(engine, tmp_path / "none.weblab")
