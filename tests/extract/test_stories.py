"""Stories are asked for, judged usable or not, and kept on disk through whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pyemo.errors import InputError
from pyemo.extract.recipe import Recipe
from pyemo.extract.stories import (
    Story,
    StoryPrompt,
    StoryStore,
    find_fault,
    good_stories,
    story_prompts,
)
from pyemo.texts import sources

SAMPLED = Recipe("sampled", "stories", n_stories=7)
GREEDY = replace(SAMPLED, temperature=0)
TEXT = " ".join(f"word{i}" for i in range(40))


def story(index: int, text: str = TEXT, emotion: str = "angry") -> Story:
    return Story(emotion, index, f"prompt {index}", text, tuple(range(len(text.split()))))


def prompt(index: int, emotion: str = "angry") -> StoryPrompt:
    return StoryPrompt(emotion, index, f"prompt {index}")


@pytest.fixture
def store(tmp_path: Path) -> StoryStore:
    return StoryStore.open(SAMPLED, "model", tmp_path)


def reopened(store: StoryStore) -> StoryStore:
    return StoryStore.open(SAMPLED, "model", store.path.parent)


# prompts


def test_sampled_prompts_are_used_again_and_greedy_ones_once() -> None:
    templates = sources.story_templates()
    assert len({p.text for p in story_prompts(SAMPLED, ["angry"])}) == len(templates)
    assert len(story_prompts(SAMPLED, ["angry"])) == 7
    assert len(story_prompts(GREEDY, ["angry"])) == len(templates)


def test_neutral_stories_are_asked_for_where_they_are_the_baseline() -> None:
    assert {p.emotion for p in story_prompts(SAMPLED, ["angry"])} == {"angry"}
    relative = replace(SAMPLED, baseline="neutral")
    assert {p.emotion for p in story_prompts(relative, ["angry"])} == {"angry", "neutral"}


def test_topic_prompts_name_emotion_and_topic() -> None:
    prompts = story_prompts(replace(SAMPLED, story_prompts="topics"), ["angry"])
    for asked, topic in zip(prompts, sources.story_topics(), strict=False):
        assert "angry" in asked.text
        assert topic in asked.text


# faults


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I\u2019m sorry, but I can\u2019t assist with that request.",
        "Sorry, I cannot write this.",
        "As an AI language model, I have no feelings.",
        "I do not have feelings. " + TEXT,
        "I cannot do that.",
    ],
)
def test_refusals_are_not_used(text: str) -> None:
    assert find_fault(text) == "refusal"


def test_a_character_may_be_sorry() -> None:
    assert find_fault(f'He sat down. "I\'m sorry," she said. {TEXT}') is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "short"),
        ("Once upon a time there was a cat.", "short"),
        ("The cat sat. " * 30, "repetitive"),
        (TEXT, None),
    ],
)
def test_empty_short_and_repetitive_stories_are_not_used(text: str, fault: str | None) -> None:
    assert find_fault(text) == fault


def test_unused_stories_are_counted_by_emotion_and_fault() -> None:
    stories = [story(0), story(1, "short"), story(2, "I'm sorry."), story(3, "", "sad")]
    good, faults = good_stories(stories)
    assert good == {"angry": [stories[0]]}
    assert faults == {"angry": {"short": 1, "refusal": 1}, "sad": {"short": 1}}


def test_stories_of_which_the_pooling_takes_no_token_are_short() -> None:
    good, faults = good_stories([story(0)], min_tokens=41)
    assert (good, faults) == ({}, {"angry": {"short": 1}})
    assert good_stories([story(0)], min_tokens=40)[1] == {}


# the store


def test_a_story_is_on_disk_when_it_was_added(store: StoryStore) -> None:
    store.add(story(0))
    store.add(story(1))
    again = reopened(store)
    assert [again.get(prompt(i)) for i in range(3)] == [story(0), story(1), None]


def test_a_story_to_another_prompt_is_none(store: StoryStore) -> None:
    store.add(story(0))
    assert store.get(StoryPrompt("angry", 0, "another prompt")) is None


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"temperature": 0.7}, {"max_tokens": 64}, {"story_prompts": "topics"}],
)
def test_other_choices_of_writing_have_other_stores(
    tmp_path: Path, change: dict[str, object]
) -> None:
    other = StoryStore.open(replace(SAMPLED, **change), "model", tmp_path)  # type: ignore[arg-type]
    assert other.path != StoryStore.open(SAMPLED, "model", tmp_path).path


def test_other_choices_of_reading_share_the_stories(store: StoryStore) -> None:
    reading = replace(SAMPLED, pooling="last", baseline="neutral", denoise=0.5, n_stories=20)
    assert StoryStore.open(reading, "model", store.path.parent).path == store.path


@pytest.mark.parametrize("n_bytes", [1, 30, 150])
def test_a_story_that_was_cut_off_is_written_anew_and_the_others_are_kept(
    store: StoryStore, n_bytes: int
) -> None:
    store.add(story(0))
    store.add(story(1))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-n_bytes])
    again = reopened(store)
    assert again.get(prompt(0)) == story(0)
    assert again.get(prompt(1)) is None
    again.add(story(1))
    assert store.path.read_bytes() == whole


def test_a_store_that_was_cut_off_in_its_first_line_is_begun_anew(store: StoryStore) -> None:
    store.add(story(0))
    store.path.write_bytes(store.path.read_bytes()[:20])
    again = reopened(store)
    again.add(story(0))
    assert reopened(store).get(prompt(0)) == story(0)


@pytest.mark.parametrize("content", [b'{"pyemo_stories": 1}\n', b"no end of line", b"[]\n{}\n"])
def test_a_file_that_is_no_store_of_ours_is_refused_and_stays_as_it_is(
    store: StoryStore, content: bytes
) -> None:
    store.path.write_bytes(content)
    with pytest.raises(InputError, match=store.path.name):
        reopened(store)
    assert store.path.read_bytes() == content


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[" * 100_000,
        "[1, 2]",
        "{}",
        json.dumps({"emotion": 5, "index": 0, "prompt": "", "text": "", "tokens": []}),
        json.dumps({"emotion": "sad", "index": 0, "prompt": "", "text": None, "tokens": []}),
        json.dumps({"emotion": "sad", "index": 0, "prompt": "", "text": "", "tokens": [-1]}),
        json.dumps({"emotion": "sad", "index": 0, "prompt": "", "text": "", "tokens": ["1"]}),
    ],
)
def test_a_damaged_line_is_refused_by_its_number(store: StoryStore, line: str) -> None:
    store.add(story(0))
    with store.path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match="line 3"):
        reopened(store)


def test_a_folder_that_cannot_be_made_is_refused_before_a_story_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    store = StoryStore.open(SAMPLED, "model", tmp_path / "file" / "stories")
    with pytest.raises(InputError, match="cannot be written"):
        store.prepare()
    with pytest.raises(InputError, match="cannot be written"):
        store.add(story(0))


def test_a_store_that_is_a_folder_is_refused(store: StoryStore) -> None:
    store.path.mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        reopened(store)


WRITER = """
import sys
from pathlib import Path
from pyemo.extract.stories import Story, StoryStore
path, first, words = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = StoryStore(path, {"pyemo_stories": 1})
print("ready", flush=True)
for command in sys.stdin:
    for i in range(first, first + 5):
        store.add(Story("angry", i, "p", "word " * words, tuple(range(20))))
    print("done", flush=True)
    store = StoryStore(path := Path(command.strip()), {"pyemo_stories": 1})
"""


@pytest.mark.parametrize("n_words", [20, 5000])
def test_two_writers_that_begin_a_store_at_once_lose_nothing(tmp_path: Path, n_words: int) -> None:
    n_rounds = 15
    paths = [tmp_path / f"{i}.jsonl" for i in range(n_rounds + 1)]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(paths[0]), str(1000 * k), str(n_words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    for following in paths[1:]:
        for answers in (writer.stdout.readline() for writer in writers):  # type: ignore[union-attr]
            assert answers
        for writer in writers:
            writer.stdin.write(f"{following}\n")  # type: ignore[union-attr]
            writer.stdin.flush()  # type: ignore[union-attr]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    counts = [len(StoryStore(path, {"pyemo_stories": 1})._stories) for path in paths[:-1]]
    assert counts == [10] * n_rounds


def test_a_line_that_a_dead_writer_began_is_not_glued_to_the_next(tmp_path: Path) -> None:
    path, key = tmp_path / "s.jsonl", {"pyemo_stories": 1}
    store = StoryStore(path, key)
    store.add(Story("angry", 0, "p", "t", ()))
    with path.open("a") as file:
        file.write(json.dumps({"emotion": "angry"})[:9])
    store.add(Story("angry", 1, "p", "t", ()))
    assert len(StoryStore(path, key)._stories) == 2


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_stories_are_no_pipe_folder_or_device(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(os.devnull)
    with pytest.raises(InputError, match="name"):
        StoryStore(path, {"pyemo_stories": 1})
