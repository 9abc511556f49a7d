"""Conversations in the browser's storage: kept, renamed, deleted, exported, in two tabs, in a storage that fails."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.server.page.browser import Chat, conversation, tab
from tests.server.page.conftest import Visit
from tests.support.engines import PAIRS

ANSWERS = {pair.instruction: pair.response for pair in PAIRS}
HELLO, JOKE = "Say hello.", "Tell me a joke."


def choose(chat: Chat, title: str, action: str) -> None:
    """Choose from the menu of a conversation in the list."""
    chat.page.get_by_role("navigation").get_by_role("listitem").filter(has_text=title).hover()
    chat.button(f"Actions for “{title}”").click()
    chat.page.get_by_role("menuitem", name=action).click()


def test_several_conversations_survive_a_reload(chat: Chat) -> None:
    chat.ask(HELLO)
    chat.button("New conversation").click()
    chat.ask(JOKE)
    chat.field.fill("half a thought")

    chat.page.reload()

    expect(chat.conversations).to_have_text([JOKE, HELLO])
    expect(chat.messages).to_have_count(2)
    expect(chat.answers.last.locator(".body")).to_have_text(ANSWERS[JOKE])
    expect(chat.field).to_have_value("half a thought")
    chat.conversations.filter(has_text=HELLO).click()
    expect(chat.answers.last.locator(".body")).to_have_text(ANSWERS[HELLO])
    expect(chat.field).to_have_value("")


def test_the_draft_of_a_new_conversation_survives_a_reload(chat: Chat) -> None:
    chat.field.fill("half a thought")
    chat.page.reload()
    expect(chat.field).to_have_value("half a thought")
    expect(chat.conversations).to_have_count(0)


def test_an_answer_goes_on_while_another_conversation_is_read(chat: Chat) -> None:
    chat.endless()
    chat.begin(HELLO)
    chat.button("New conversation").click()

    expect(chat.page.get_by_role("img", name="answering")).to_be_visible()
    expect(chat.messages).to_have_count(0)
    chat.conversations.first.click()
    expect(chat.answers.last.locator(".text")).to_be_visible()
    chat.button("Stop").click()
    expect(chat.page.get_by_role("img", name="answering")).to_be_hidden()


def test_what_there_was_of_an_answer_survives_the_tab(chat: Chat) -> None:
    chat.endless()
    chat.begin(HELLO)
    expect(chat.answers.last.locator(".text")).to_be_visible()

    chat.page.reload()

    expect(chat.answers.last).to_contain_text("Broken off")
    expect(chat.answers.last.locator(".text")).to_be_visible()
    expect(chat.button("Answer again")).to_be_enabled()


def test_renaming(chat: Chat) -> None:
    chat.ask(HELLO)

    choose(chat, HELLO, "Rename")
    dialog = chat.page.get_by_role("dialog", name="Rename")
    dialog.get_by_label("Name of the conversation").fill("挨拶")
    chat.page.keyboard.press("Enter")

    expect(dialog).to_be_hidden()
    chat.ask(JOKE)
    chat.page.reload()
    expect(chat.conversations).to_have_text(["挨拶"])
    expect(chat.page.locator("h1")).to_have_text("挨拶")


def test_deleting_can_be_taken_back(chat: Chat) -> None:
    chat.ask(HELLO)

    choose(chat, HELLO, "Delete")
    expect(chat.conversations).to_have_count(0)
    expect(chat.messages).to_have_count(0)
    assert chat.stored() == []
    chat.button("Undo").click()

    expect(chat.messages).to_have_count(2)
    chat.page.reload()
    expect(chat.conversations).to_have_text([HELLO])


def test_deleting_ends_the_answer(chat: Chat) -> None:
    chat.endless()
    chat.begin(HELLO)

    choose(chat, HELLO, "Delete")

    chat.wait()
    chat.page.reload()
    expect(chat.page.get_by_text("No conversations yet")).to_be_visible()


def test_export(chat: Chat, tmp_path: Path) -> None:
    question = "Show me a nested loop in Python."
    answer = ANSWERS[question]
    chat.ask(question)

    with chat.page.expect_download() as markdown:
        choose(chat, question, "Export as Markdown")
    with chat.page.expect_download() as as_json:
        choose(chat, question, "Export as JSON")

    assert markdown.value.suggested_filename == f"{question}.md"
    markdown.value.save_as(tmp_path / "md")
    text = (tmp_path / "md").read_text(encoding="utf-8")
    assert text.startswith(f"# {question}\n\n")
    assert f"## You\n\n{question}\n\n## Answer\n\n{answer}\n" in text
    assert as_json.value.suggested_filename == f"{question}.json"
    as_json.value.save_as(tmp_path / "json")
    exported = json.loads((tmp_path / "json").read_text(encoding="utf-8"))
    assert exported["title"] == question
    assert [(m["role"], m["content"]) for m in exported["messages"]] == [("user", question), ("assistant", answer)]
    assert exported["messages"][1]["finish_reason"] == "stop"
    assert exported["messages"][1]["model"] == "weblab-demo-instruction-sft-Q8_0"


def test_damaged_conversations_are_left_alone(visit: Visit) -> None:
    damaged = {
        "conversation.a": "{half of",
        "conversation.b": {"id": "b", "messages": [{"role": "robot"}]},
        "conversation.c": {"id": "another", "messages": []},
        "conversation.d": "null",
    }
    chat = visit(stored={**damaged, **conversation("Whole", HELLO, "Hello!")})

    expect(chat.conversations).to_have_text(["Whole"])
    expect(chat.notices).to_contain_text("4 saved conversations cannot be read")
    chat.ask(HELLO)
    assert chat.page.evaluate("localStorage['weblab-local.conversation.a']") == "{half of"


def test_a_conversation_from_a_poorer_version_is_completed(visit: Visit) -> None:
    chat = visit(stored=conversation("Old", HELLO, "Hello!", created="yesterday", usage=None, contextStart=7))
    chat.conversations.first.click()

    assert chat.ask(JOKE)
    expect(chat.messages).to_have_count(4)


def test_a_full_storage_loses_nothing_that_is_on_the_screen(chat: Chat) -> None:
    chat.page.evaluate(
        """() => {
            let size = 8 << 20;
            for (let i = 0; size > 0; i += 1) {
                try { localStorage.setItem(`filler${i}`, "x".repeat(size)); } catch { size >>= 1; }
            }
        }"""
    )

    assert chat.ask(HELLO) == ANSWERS[HELLO]

    expect(chat.notices).to_contain_text("The browser's storage is full.")
    chat.button("New conversation").click()
    chat.conversations.filter(has_text=HELLO).click()
    expect(chat.messages).to_have_count(2)
    chat.page.evaluate("localStorage.clear()")
    chat.ask(JOKE)
    assert [len(one["messages"]) for one in chat.stored()] == [4]


def test_without_storage_the_page_works_and_says_so(visit: Visit) -> None:
    chat = visit()
    chat.page.add_init_script(
        """for (const name of ["localStorage", "sessionStorage"])
            Object.defineProperty(window, name, { get() { throw new DOMException("off", "SecurityError"); } });"""
    )
    chat.page.reload()

    chat.begin(HELLO)
    chat.wait()

    expect(chat.notices).to_contain_text("does not allow storage")
    expect(chat.conversations).to_have_text([HELLO])


def test_two_tabs_see_the_same(chat: Chat) -> None:
    chat.ask(HELLO)
    with tab(chat.page.context, chat.url) as other:
        expect(other.conversations).to_have_text([HELLO])
        other.conversations.first.click()
        other.ask(JOKE)
        expect(chat.messages).to_have_count(4)
        expect(chat.answers.last.locator(".body")).to_have_text(ANSWERS[JOKE])

        choose(other, HELLO, "Delete")
        expect(chat.conversations).to_have_count(0)
        expect(chat.messages).to_have_count(0)


def test_two_tabs_that_answer_in_one_conversation_lose_nothing(chat: Chat) -> None:
    chat.ask(HELLO)
    with tab(chat.page.context, chat.url) as other:
        other.conversations.first.click()
        chat.endless(max_tokens=400, bytes_per_second=20_000)
        chat.begin(JOKE)
        other.ask("Who are you?")
        chat.wait()

        expect(chat.notices.filter(has_text="Another tab changed the same conversation")).to_be_visible()
        questions = sorted(one["messages"][-2]["content"] for one in chat.stored())
        assert questions == [JOKE, "Who are you?"]
        expect(other.conversations).to_have_count(2)


def import_file(chat: Chat, *paths: Path) -> None:
    with chat.page.expect_file_chooser() as chooser:
        chat.page.get_by_role("button", name="Import and export").click()
        chat.page.get_by_role("menuitem", name="Import conversations").click()
    chooser.value.set_files(list(paths))


def test_what_was_exported_can_be_imported_elsewhere(chat: Chat, visit: Visit, tmp_path: Path) -> None:
    chat.ask(HELLO)
    chat.button("New conversation").click()
    chat.ask(JOKE)
    with chat.page.expect_download() as download:
        chat.page.get_by_role("button", name="Import and export").click()
        chat.page.get_by_role("menuitem", name="Export all conversations").click()
    download.value.save_as(tmp_path / "all.json")

    other = visit()
    import_file(other, tmp_path / "all.json")

    expect(other.notices).to_contain_text("2 conversations imported")
    expect(other.conversations).to_have_text([JOKE, HELLO])
    expect(other.messages).to_have_text([JOKE, re.compile(re.escape(ANSWERS[JOKE]))])
    kept = [[(m["role"], m["content"], m.get("model")) for m in one["messages"]] for one in chat.stored()]
    assert [[(m["role"], m["content"], m.get("model")) for m in one["messages"]] for one in other.stored()] == kept
    other.ask(HELLO)
    expect(other.messages).to_have_count(4)


def test_a_conversation_is_imported_once(chat: Chat, tmp_path: Path) -> None:
    chat.ask(HELLO)
    with chat.page.expect_download() as download:
        choose(chat, HELLO, "Export as JSON")
    download.value.save_as(tmp_path / "one.json")
    import_file(chat, tmp_path / "one.json")
    expect(chat.notices).to_contain_text("There was no new conversation")
    choose(chat, HELLO, "Delete")
    import_file(chat, tmp_path / "one.json")
    expect(chat.conversations).to_have_text([HELLO])
    expect(chat.messages).to_have_count(2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "{}",
        '{"format": "weblab-local/conversation", "messages": []}',
        '{"format": "weblab-local/conversation", "messages": [{"role": "robot", "content": "a"}]}',
        '{"format": "weblab-local/conversations", "conversations": [7]}',
    ],
)
def test_a_file_that_is_no_export_is_named(chat: Chat, tmp_path: Path, text: str) -> None:
    (tmp_path / "会話 <b>.json").write_text(text)
    import_file(chat, tmp_path / "会話 <b>.json")
    expect(chat.notices).to_contain_text("会話 <b>.json")
    assert chat.stored() == []
