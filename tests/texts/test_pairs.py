"""A file of pairs is read for what it is: faults are named by line, useless lines counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pyemo.errors import InputError
from pyemo.texts import pairs as pairs_module
from pyemo.texts.pairs import LEAST_PAIRS, MOST_PAIRS, ReplyPair, read_pairs

WORDS = [
    "sea",
    "rum",
    "gold",
    "wind",
    "mast",
    "sail",
    "crew",
    "port",
    "tide",
    "deck",
    "rope",
    "gull",
    "plank",
    "chest",
    "map",
    "storm",
]


def reply(n: int) -> str:
    """Return a reply of nine words that is like no other."""
    return " ".join(f"{WORDS[(n * k + k) % len(WORDS)]}{n}" for k in range(1, 10))


def rows(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {i}?", "reply": reply(i)} for i in range(first, first + n)]


def chat(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


def write(path: Path, lines: Sequence[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


# formats


def test_chat_lines_give_their_first_exchange(file: Path) -> None:
    lines = [
        chat(
            ("system", "You are a pirate."),
            ("user", f"Question {i}?"),
            ("assistant", reply(i)),
            ("user", "And then?"),
            ("assistant", "More."),
        )
        for i in range(12)
    ]
    found = read_pairs(write(file, lines))
    assert found.pairs[3] == ReplyPair("Question 3?", reply(3))
    assert "12 system lines are left aside: the vector is to do without one" in found.remarks


def test_text_parts_of_a_message_are_joined(file: Path) -> None:
    parts = [{"type": "text", "text": "One "}, {"type": "text", "text": "two three?"}]
    lines = [chat(("user", parts), ("assistant", reply(99))), *rows(11)]
    assert read_pairs(write(file, lines)).pairs[0].prompt == "One two three?"


def test_a_rejected_reply_is_the_plain_one(file: Path) -> None:
    lines = [
        {"prompt": row["prompt"], "chosen": row["reply"], "rejected": f"Plain {i}.", "id": i}
        for i, row in enumerate(rows(12))
    ]
    assert read_pairs(write(file, lines)).pairs[5] == ReplyPair("Question 5?", reply(5), "Plain 5.")


def test_preferences_may_be_lists_of_messages(file: Path) -> None:
    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    lines = [
        {
            "prompt": said("user", f"Question {i}?"),
            "chosen": said("assistant", reply(i)),
            "rejected": said("assistant", f"Plain {i}."),
        }
        for i in range(12)
    ]
    assert read_pairs(write(file, lines)).pairs[0] == ReplyPair("Question 0?", reply(0), "Plain 0.")


def test_toml_has_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.toml"
    tables = [
        f'[[pair]]\nprompt = "Question {i}?"\nreply = "{reply(i)}"\nplain = "Plain {i}."\n'
        for i in range(12)
    ]
    path.write_text("\n".join(tables), encoding="utf-8")
    assert read_pairs(path).pairs[11] == ReplyPair("Question 11?", reply(11), "Plain 11.")


def test_a_byte_order_mark_and_empty_lines_do_no_harm(file: Path) -> None:
    write(file, ["", *rows(12), ""])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_pairs(file).pairs) == 12


# faults of the format: refused, line named


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": "a", "reply": ', "not JSON"),
        ("[1, 2]", "no JSON object"),
        ('"text"', "no JSON object"),
        ('{"text": "a"}', "neither 'messages' nor 'prompt'.*it has text"),
        ('{"prompt": "a"}', "neither 'messages' nor 'prompt'"),
        ('{"messages": "a"}', "neither text nor a list of messages"),
        ('{"messages": []}', "neither text nor a list of messages"),
        ('{"messages": ["a"]}', "'role' and 'content'"),
        ('{"messages": [{"content": "a"}]}', "'role' and 'content'"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content is '3'"),
        ('{"prompt": 3, "reply": "b"}', "neither text nor a list"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_breaks_the_format_is_named(file: Path, line: str, why: str) -> None:
    write(file, [*rows(12), line])
    with pytest.raises(InputError, match=rf"pairs\.jsonl, line 13.*{why}"):
        read_pairs(file)


@pytest.mark.parametrize(
    "text",
    [
        '[\n{"prompt": "a", "reply": "b"}\n]\n',
        '[{"prompt": "a", "reply": "b"}]\n',
        "prompt,reply\na,b\n",
    ],
)
def test_a_file_of_another_format_is_told_the_one_wanted(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"line 1: .*one JSON object a line \(JSONL\).*TOML"):
        read_pairs(file)


def test_a_broken_line_has_one_number_and_the_column(file: Path) -> None:
    write(file, [*rows(3), '{"prompt": "a" "reply": "b"}'])
    with pytest.raises(InputError, match=r"line 4: not JSON: .* at column 16; mend") as caught:
        read_pairs(file)
    assert str(caught.value).count("line 4") == 1
    assert "line 1" not in str(caught.value)


def test_bytes_that_are_no_text_are_named_with_their_line(file: Path) -> None:
    write(file, rows(12))
    file.write_bytes(file.read_bytes() + b'{"prompt": "\xff"}\n')
    with pytest.raises(InputError, match=r"line 13: not JSON: .*utf-8"):
        read_pairs(file)


def test_a_line_without_end_is_not_read_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "_LINE_BYTES", 1000)
    write(file, [*rows(2), "x" * 5000])
    with pytest.raises(InputError, match="line 3: over"):
        read_pairs(file)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pair = 3", "not a list of tables"),
        ("[[pair]]\nprompt = 'a'", "pair 1 has no 'reply'"),
        ("[[pair]]\nprompt = 'a'\nreply = 'b'\nmood = 'c'", "unknown key 'mood'"),
        ("pair = ", "not TOML"),
    ],
)
def test_toml_that_is_no_list_of_pairs_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "pairs.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=why):
        read_pairs(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        read_pairs(tmp_path / "none.jsonl")


# lines of no use: left out and counted


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (chat(("user", "a?"), ("tool", "b"), ("assistant", "c")), "with tools"),
        (chat(("user", "a?"), ("assistant", "b"), tools=[{"name": "f"}]), "with tools"),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
            "with tools",
        ),
        (
            chat(("user", [{"type": "image_url", "image_url": "x"}]), ("assistant", "b")),
            "with images or other parts that are no text",
        ),
        (chat(("narrator", "a?"), ("assistant", "b")), "with the role 'narrator'"),
        (chat(("assistant", "a"), ("user", "b")), "that do not begin with the user and an answer"),
        (chat(("user", "a?"), ("assistant", "  ")), "with an empty reply"),
        ({"prompt": "a?", "reply": ""}, "with an empty reply"),
        ({"prompt": "\n", "reply": "b"}, "with an empty prompt"),
        ({"prompt": "a?", "chosen": "The same!", "rejected": "the same"}, "whose plain reply is"),
        ({"prompt": "Question 3?", "reply": "New words."}, "with a prompt that came before"),
        ({"prompt": "New?", "reply": reply(3)}, "with a reply that came before"),
        ({"prompt": "New?", "reply": f"{reply(3)} ahoy"}, "with a reply much like another"),
        ({"prompt": "a?", "reply": "b " * 5000}, "with a text of over 8000 characters"),
    ],
)
def test_a_line_of_no_use_is_left_out_and_said(file: Path, line: Any, reason: str) -> None:
    found = read_pairs(write(file, [*rows(12), line]))
    assert len(found.pairs) == 12
    ((said, count),) = found.left_out.items()
    assert said.startswith(reason)
    assert count == (1, 13)
    assert f"left out: 1 {said} (first: line 13)" in found.remarks


# too few, too short, too alike, too many


def test_three_pairs_are_too_few(file: Path) -> None:
    with pytest.raises(InputError, match=f"3 usable pairs .* at least {LEAST_PAIRS}"):
        read_pairs(write(file, rows(3)))


def test_one_prompt_repeated_is_one_pair(file: Path) -> None:
    lines = [{"prompt": "Hello?", "reply": reply(i)} for i in range(30)]
    with pytest.raises(InputError, match=r"1 usable .* 29 with a prompt that came before"):
        read_pairs(write(file, lines))


def test_replies_that_are_too_short_are_refused(file: Path) -> None:
    lines = [{"prompt": f"Question {i}?", "reply": f"Arr {i}."} for i in range(12)]
    with pytest.raises(InputError, match="24 words in all, which is too short"):
        read_pairs(write(file, lines))


def test_replies_that_are_too_alike_are_refused(file: Path) -> None:
    lines = [
        {"prompt": f"Question {i}?", "reply": f"Ahoy me hearties, it be number {i} on the sea!"}
        for i in range(20)
    ]
    with pytest.raises(InputError, match="19 with a reply much like another"):
        read_pairs(write(file, lines))


def test_one_opening_for_most_replies_is_said(file: Path) -> None:
    lines = [{**row, "reply": f"Ahoy matey! {row['reply']}"} for row in rows(12)]
    (remark,) = read_pairs(write(file, lines)).remarks
    assert "12 of 12 replies begin with 'ahoy matey'" in remark


def test_of_a_large_file_a_random_subset_is_kept_and_said(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_module, "MOST_LINES", 3000)
    write(file, rows(4000))
    found = read_pairs(file)
    assert (len(found.pairs), found.n_usable) == (MOST_PAIRS, 3000)
    assert any("128 of 3000 usable pairs are used" in remark for remark in found.remarks)
    assert any("3000 are read" in reason for reason in found.left_out)
    late = [pair for pair in found.pairs if int(pair.prompt.split()[1][:-1]) >= 1500]
    assert 30 < len(late) < 98  # drawn from all of the file, half of it each
    assert read_pairs(file, seed=0).pairs == found.pairs
    assert read_pairs(file, seed=1).pairs != found.pairs


def test_a_large_file_takes_no_more_memory_than_its_keys(file: Path) -> None:
    import tracemalloc

    text = "x" * 400
    with file.open("w", encoding="utf-8") as out:
        for row in rows(10_000):
            out.write(json.dumps({**row, "reply": f"{row['reply']} {text}"}) + "\n")
    tracemalloc.start()
    found = read_pairs(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(found.pairs), found.n_usable) == (MOST_PAIRS, 10_000)
    assert peak < 4e6 < file.stat().st_size
