"""``pyemo extract`` writes what was asked for, says what it is worth, and loses nothing."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import pyemo
from engines import needs_torch

from pyemo import CacheVector, ControlVector, Model
from pyemo.emotions import EMOTIONS
from pyemo.extract import cache_vectors
from pyemo.extract.recipe import Recipe
from pyemo.extract.stories import Story, StoryStore
from pyemo.texts.replies import reply_prompts

STORIES = """
name = "few"
source = "stories"
n_stories = 3
max_tokens = 320
baseline = "neutral"
"""
JEALOUS = """
[emotion.jealous]
vignettes = ["He counted her messages.", "She took the smallest piece.", "It was the wrong colour."]
personas = ["feeling jealous of a sibling", "feeling glad for a sibling"]
"""


@pytest.fixture
def stories_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "few.toml"
    path.write_text(STORIES, encoding="utf-8")
    return path


# what is written


def test_all_emotions_go_into_a_folder(whole_set: tuple[Path, dict[str, Any]], model: Path) -> None:
    folder, said = whole_set
    assert sorted(path.stem for path in folder.iterdir()) == sorted(EMOTIONS)
    assert said["vectors"] == {name: str(folder / f"{name}.gguf") for name in EMOTIONS}
    vector = ControlVector.load(folder / "angry.gguf")
    assert vector.check(Model.load(model)).kind.value == "same file"
    assert Recipe.from_toml(vector.metadata.recipe) == Recipe.load("reading")


def test_the_quality_of_the_set_is_told(whole_set: tuple[Path, dict[str, Any]]) -> None:
    quality = whole_set[1]["quality"]
    assert quality["emotions"] == list(EMOTIONS)
    assert quality["held_out"]["n_texts"] == 140
    assert quality["separation"][0]["centring"] == "relative to the mean over emotions"


def test_one_emotion_is_the_one_of_the_set(
    whole_set: tuple[Path, dict[str, Any]],
    model: Path,
    tmp_path: Path,
) -> None:
    target = tmp_path / "new" / "mine.gguf"
    result = pyemo("extract", "anger", "-r", "reading", "-m", model, "-o", target, "--threads", 1)
    assert result.exit_code == 0, result.stderr
    layers = Recipe.load("reading").layer_range(4)
    assert f"{target}: angry, layers {layers.start}:{layers.stop}" in result.stdout
    assert re.search(r"held-out accuracy \d+/140 = \d+% \[\d+, \d+\], by chance 5%", result.stdout)
    assert "relative to the mean over 20 emotions" in result.stderr
    alone, other = ControlVector.load(target), ControlVector.load(whole_set[0] / "angry.gguf")
    for layer, direction in alone.directions.items():
        assert np.allclose(direction, other.directions[layer], atol=1e-3)


def test_a_file_that_was_there_stays_as_it_was_when_the_extraction_fails(
    base_model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "angry.gguf"
    target.write_bytes(b"precious")
    assert (
        pyemo("extract", "anger", "-m", base_model, "-r", "contrast", "-o", target).exit_code == 1
    )
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


def test_own_emotions_are_extracted(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(JEALOUS, encoding="utf-8")
    result = pyemo(
        "extract", "--emotions", own, "-r", "contrast", "-m", model, "-o", tmp_path, "--threads", 1
    )
    assert result.exit_code == 0, result.stderr
    assert ControlVector.load(tmp_path / "jealous.gguf").metadata.emotion == "jealous"


@pytest.mark.parametrize(
    ("more", "recipe"), [((), "trained"), (("-r", "trained"), "trained"), (("--all",), "trained")]
)
def test_an_emotion_is_trained_unless_another_recipe_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], recipe: str
) -> None:
    asked = []
    monkeypatch.setattr(
        "pyemo.cli.extract_voices.extract_emotions", lambda made_by, *_, **__: asked.append(made_by)
    )
    emotions = () if "--all" in more else ("anger",)
    result = pyemo("extract", *emotions, *more, "-o", tmp_path / "set")
    assert result.exit_code == 0, result.stderr
    assert [made_by.name for made_by in asked] == [recipe]


def test_emotions_of_a_file_are_read_unless_another_recipe_is_named(
    model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.toml"
    own.write_text(JEALOUS, encoding="utf-8")
    words = ("extract", "--emotions", own, "-m", model, "-o", tmp_path, "--threads", 1)
    result = pyemo(*words)
    assert result.exit_code == 0, result.stderr
    made_by = ControlVector.load(tmp_path / "jealous.gguf").metadata.recipe
    assert Recipe.from_toml(made_by).name == "reading"


# wrong usage, and what cannot be done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["anger", "joy", "-o", "two.gguf"], "give -o FOLDER"),
        (["--all", "-o", "all.gguf"], "give -o FOLDER"),
        (["anger", "--all", "-o", "folder"], "by name, or --all"),
        (["-o", "folder"], "name an emotion"),
        (["anger"], "--output"),
        (["anger", "-o", "a.gguf", "--backend", "jax"], "jax"),
        (["anger", "-o", "a.gguf", "--backend", "engine"], "-r reading"),
        (["anger", "-o", "a.gguf", "-r", "trained", "--emotions", "a.toml"], "--replies"),
    ],
)
def test_wrong_usage_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = pyemo("extract", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["angri"], "did you mean 'angry'"),
        (["anger", "-r", "papper"], "no recipe 'papper'"),
        (["anger", "--emotions", "none.toml"], "cannot be read"),
        (["anger", "--seed", "-1"], "seed"),
        (["anger", "-r", "reading", "--parallel", "0"], "--parallel 0"),
        (
            ["anger", "-r", "reading", "--backend", "engine", "--device", "cuda"],
            "--backend transformers",
        ),
        (["anger", "-m", "none.gguf"], "none.gguf"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = pyemo("extract", *arguments, "-o", tmp_path / "a.gguf")
    assert result.exit_code == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_emotion_lists_those_of_the_own_file(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(JEALOUS, encoding="utf-8")
    result = pyemo("extract", "jelous", "--emotions", own, "-o", tmp_path / "a.gguf")
    assert result.exit_code == 1
    assert "The file has jealous." in result.stderr


def test_an_output_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    result = pyemo("extract", "anger", "-m", "no-model", "-o", tmp_path / "file" / "a.gguf")
    assert result.exit_code == 1
    assert "cannot be written to" in result.stderr


def test_a_folder_named_like_a_vector_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").mkdir()
    result = pyemo("extract", "anger", "-o", tmp_path / "a.gguf")
    assert result.exit_code == 1
    assert "is a folder" in result.stderr


def test_a_model_without_a_chat_template_is_refused_by_recipes_that_instruct(
    base_model: Path, tmp_path: Path
) -> None:
    arguments = ["extract", "anger", "-m", base_model, "-r", "contrast", "-o", tmp_path / "a.gguf"]
    result = pyemo(*arguments, "--threads", 1)
    assert result.exit_code == 1
    assert "--allow-no-chat-template" in result.stderr
    allowed = pyemo(*arguments, "--threads", 1, "--allow-no-chat-template")
    assert allowed.exit_code == 0, allowed.stderr


@needs_torch
def test_a_device_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    arguments = ["-r", "reading", "--backend", "transformers", "--device", "cuda:99"]
    result = pyemo("extract", "anger", "-m", model, *arguments, "-o", tmp_path / "a.gguf")
    assert result.exit_code == 1
    assert "cuda:99" in result.stderr


# stories


def extract_stories(model: Path, recipe: Path, *more: object):  # type: ignore[no-untyped-def]
    folder = recipe.parent
    stories = folder / "stories"
    arguments = ["-m", model, "-r", recipe, "-o", folder / "a.gguf", "--stories", stories]
    return pyemo("extract", "anger", *arguments, "--threads", 1, *more)


def keep(model: Path, recipe_file: Path, *texts: str) -> StoryStore:
    """Put stories into the store, as if the model had written them; the neutral ones are good."""
    from pyemo.extract.stories import story_prompts

    recipe = Recipe.load(str(recipe_file))
    loaded = Model.load(model)
    store = StoryStore.open(recipe, loaded.file_sha256, recipe_file.parent / "stories")
    for prompt in story_prompts(recipe, ["angry"]):
        good = " ".join(f"{prompt.index}word{i}" for i in range(30))
        text = good if prompt.emotion == "neutral" else texts[prompt.index]
        tokens = tuple(loaded.tokenize(text))
        store.add(Story(prompt.emotion, prompt.index, prompt.text, text, tokens))
    return store


def test_stopped_by_ctrl_c_it_says_that_stories_are_kept_and_goes_on(
    model: Path, stories_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = []
    add = StoryStore.add

    def add_two(store: StoryStore, story: Story) -> None:
        add(store, story)
        added.append(story)
        if len(added) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(StoryStore, "add", add_two)
    result = extract_stories(model, stories_recipe)
    assert result.exit_code == 130
    assert "Finished stories are kept" in result.stderr
    extract_stories(model, stories_recipe)  # goes on; what becomes of the stories is not asked here
    assert len({(story.emotion, story.index) for story in added}) == len(added) == 6


def test_a_class_whose_stories_failed_is_refused_or_read_from_vignettes(
    model: Path, stories_recipe: Path
) -> None:
    refusal = "I'm sorry, but I can't assist with that request."
    keep(model, stories_recipe, refusal, refusal, "Too short.")
    result = extract_stories(model, stories_recipe)
    assert result.exit_code == 1
    assert "0 usable stories for 'angry' (2 refusal, 1 short)" in result.stderr
    assert "--fallback" in result.stderr
    instead = extract_stories(model, stories_recipe, "--fallback")
    assert instead.exit_code == 0, instead.stderr
    assert "2 refusal, 1 short; its vignettes were read instead" in instead.stderr


def test_a_foreign_story_cache_is_refused_and_stays_as_it_is(
    model: Path, stories_recipe: Path
) -> None:
    store = keep(model, stories_recipe, *("word " * 30 for _ in range(3)))
    store.path.write_text('{"pyemo_stories": 1, "model": "another"}\n', encoding="utf-8")
    result = extract_stories(model, stories_recipe)
    assert result.exit_code == 1
    assert "another model or recipe" in result.stderr
    assert "another" in store.path.read_text(encoding="utf-8")


# voices


VOICES = """
name = "quick"
source = "replies"
[training]
steps = 2
evaluate_every = 1
batch = 4
rate = 0.03
cap = 0.3
start = 0.05
"""
SUBJECTS = ("dog", "cat", "sun", "rain", "tea", "sea", "car", "bus", "tree", "shoe", "lamp", "door")


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text(VOICES, encoding="utf-8")
    return path


@pytest.fixture
def pirate(tmp_path: Path) -> Path:
    path = tmp_path / "pirate.jsonl"
    draw = random.Random(0)
    lines = []
    for s in SUBJECTS:
        a, b, c = draw.sample(SUBJECTS, 3)
        lines.append(
            {
                "prompt": f"the {s}",
                "chosen": f"arr {a} arr {s} ahoy {b} arr {c} ahoy",
                "rejected": f"well {a} is {s} just {b} now {c} there",
            }
        )
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    return path


@needs_torch
def test_replies_become_a_vector_that_run_takes_at_its_own_strength(
    base_model: Path, pirate: Path, quick: Path, tmp_path: Path
) -> None:
    with pirate.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "the hat", "reply": ""}\n')
    target = tmp_path / "pirate.gguf"
    asked = ("extract", "--replies", pirate, "-r", quick, "-m", base_model, "-o", target)
    result = pyemo(*asked, "--threads", 1, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["voice"] == "pirate"
    assert said["held_out_gain"][0] > said["held_out_gain_of_shuffled_labels"][0]
    assert said["left_out"] == {"with an empty reply": [1, 14]}
    assert "1 with an empty reply (first: line 14)" in " ".join(result.stderr.split())
    assert "has no chat template: trained as plain text" in " ".join(result.stderr.split())
    ran = pyemo("run", "-m", base_model, "-c", target, "-n", 2, "--threads", 1, "--json", "the dog")
    (term,) = json.loads(ran.stdout)["steering"]["terms"]
    assert (term["strength_source"], term["strength"]) == ("trained", said["strength"])


@needs_torch
def test_replies_without_a_voice_leave_no_file(
    model: Path, pirate: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyemo.extract.voices import VoiceTrainer

    monkeypatch.setattr(VoiceTrainer, "rises", lambda _self, _vector, held: np.zeros(len(held)))
    target = tmp_path / "none.gguf"
    asked = ("extract", "--replies", pirate, "-r", quick, "-m", model, "-o", target)
    result = pyemo(*asked, "--threads", 1)
    assert result.exit_code == 1
    assert "no vector of 'none' was made" in result.stderr
    assert not target.exists()


def test_a_broken_line_is_named_before_a_model_is_loaded(pirate: Path, tmp_path: Path) -> None:
    with pirate.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    asked = ("extract", "--replies", pirate, "-m", "no-such-model", "-o", tmp_path / "p.gguf")
    result = pyemo(*asked)
    assert result.exit_code == 1
    assert "line 14: not JSON" in result.stderr


@pytest.mark.parametrize(
    "more", [["anger"], ["--all"], ["--calibrate"], ["--backend", "engine"], ["-r", "contrast"]]
)
def test_what_replies_cannot_be_mixed_with_is_refused(
    pirate: Path, tmp_path: Path, more: list[str]
) -> None:
    result = pyemo("extract", "--replies", pirate, "-o", tmp_path / "p.gguf", *more)
    assert result.exit_code == 2
    assert "--replies" in result.stderr or "reads no replies" in result.stderr


@needs_torch
def test_vectors_finished_before_a_run_was_cut_off_stay_and_are_not_made_again(
    model: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyemo.extract.voices import VoiceReply, VoiceTrainer

    asked: list[str] = []

    def cut_off(self: VoiceTrainer, name: str, progress: Any) -> Any:
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        texts = [VoiceReply(f"the {s}", f"arr {s} {name}", f"well {s}") for s in SUBJECTS]
        return self.voice(name, texts[:8], texts[8:], progress)

    monkeypatch.setattr(VoiceTrainer, "emotion", cut_off)
    words = ("extract", "anger", "joy", "-r", quick, "-m", model, "-o", tmp_path / "set")
    stopped = pyemo(*words, "--threads", 1)
    assert stopped.exit_code != 0
    assert asked == ["angry", "happy"], stopped.stderr
    first = (tmp_path / "set" / "angry.gguf").read_bytes()
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["angry.gguf"]
    result = pyemo(*words, "--threads", 1, "--json")
    assert result.exit_code == 0, result.stderr
    assert asked == ["angry", "happy", "happy"]
    assert (tmp_path / "set" / "angry.gguf").read_bytes() == first
    assert [line["kept"] for line in json.loads(result.stdout)["vectors"]] == [True, False]


@needs_torch
def test_trained_vectors_can_be_calibrated_by_the_same_command(
    model: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyemo.extract.voices import VoiceReply, VoiceTrainer

    def trained(self: VoiceTrainer, name: str, progress: Any) -> Any:
        texts = [VoiceReply(f"the {s}", f"arr {s} {name}", f"well {s}") for s in SUBJECTS]
        return self.voice(name, texts[:8], texts[8:], progress)

    calibrated: list[Path] = []

    def calibrate(paths: list[Path], *_: object) -> list[dict[str, Any]]:
        calibrated.extend(paths)
        assert all(path.exists() for path in paths)
        return [{"vector": path.stem} for path in paths]

    monkeypatch.setattr(VoiceTrainer, "emotion", trained)
    monkeypatch.setattr("pyemo.cli.calibrate.calibrate_files", calibrate)
    target = tmp_path / "happy.gguf"
    words = ("extract", "joy", "-r", quick, "-m", model, "-o", target, "--calibrate")
    result = pyemo(*words, "--threads", 1, "--json")
    assert result.exit_code == 0, result.stderr
    assert calibrated == [target]
    assert f"try: pyemo run --compare -m {model} --cvec {target}" in " ".join(result.stderr.split())
    assert json.loads(result.stdout)["calibrations"] == [{"vector": "happy"}]


def test_the_next_step_names_a_file_that_runs() -> None:
    from pyemo.cli.extract_voices import _next_step

    bundled = _next_step(Path("a.gguf"), "smollm2-135m-instruct")
    assert bundled.startswith("try: pyemo run --compare --cvec ./a.gguf ")
    assert "-m mine.gguf --cvec" in _next_step(Path("a.gguf"), "mine.gguf")
    assert "-m FILE.gguf --cvec" in _next_step(Path("a.gguf"), "org/for-transformers")


# cache vectors


@needs_torch
@pytest.mark.parametrize("way", ["trained", "contrast"])
def test_a_cache_vector_is_made_and_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    few = reply_prompts("watch")[:3]
    monkeypatch.setattr(cache_vectors, "reply_prompts", lambda split, style="vivid": few)
    target = tmp_path / "angry-cache.gguf"
    options = ("--cache", "-r", way, "-m", model, "--device", "cpu", "--threads", 1)
    result = pyemo("extract", "anger", *options, "--dtype", "float32", "--json", "-o", target)
    assert result.exit_code == 0, result.stderr
    (said,) = json.loads(result.stdout)["cache_vectors"]
    assert said["path"] == str(target)
    vector = CacheVector.load(target, Model.load(model))
    assert said["cells"] == list(vector.cells)
    assert f'method = "{way}' in vector.metadata.recipe
    run = pyemo("run", "-m", model, "--threads", 1, "-n", 4, "--cache-vector", target, "Hi")
    assert run.exit_code == 0, run.stderr


def test_a_file_that_is_no_cache_vector_is_kept(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "notes.gguf"
    target.write_text("mine", encoding="utf-8")
    result = pyemo("extract", "anger", "--cache", "-m", model, "-o", target)
    assert result.exit_code == 1
    assert "is not a cache vector" in result.stderr
    assert target.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("options", [("-r", "anthropic"), ("--calibrate",)])
def test_what_makes_no_cache_vector_is_wrong_usage(
    model: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    result = pyemo("extract", "anger", "--cache", *options, "-m", model, "-o", tmp_path / "a.gguf")
    assert result.exit_code == 2


# languages


def test_a_language_s_direction_goes_into_a_file_that_caps_and_cleans(
    model: Path, vectors: Path, tmp_path: Path
) -> None:
    target, clean = tmp_path / "zh.gguf", tmp_path / "clean.gguf"
    options = ("-m", model, "--threads", 1)
    result = pyemo("extract", "--language", "zh", *options, "-o", target)
    assert result.exit_code == 0, result.stderr
    assert "zh, layers 1:3" in result.stdout
    run = pyemo("run", *options, "-n", 2, "-c", f"{target}=0@cap", "the story")
    assert run.exit_code == 0, run.stderr
    result = pyemo("rescale", vectors / "warm.gguf", "--without", target, *options, "-o", clean)
    assert result.exit_code == 0, result.stderr
    assert "zh was taken out at 2 layers" in result.stderr
    language, left = ControlVector.load(target), ControlVector.load(clean)
    for layer in language.layers:
        assert abs(language.directions[layer] @ left.directions[layer]) <= 1e-3
    gauge = pyemo("run", *options, "-n", 2, "--gauge", clean, "the story")
    assert gauge.exit_code == 0, gauge.stderr


def test_a_language_is_no_emotion(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "zh.gguf"
    result = pyemo("extract", "anger", "--language", "zh", "-m", model, "-o", target)
    assert result.exit_code == 2
    assert "leave out emotions" in result.stderr
