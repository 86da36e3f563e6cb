"""The built-in texts keep what docs/extraction.md says; a user's file is read or refused."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

import pytest

from pyemo.emotions import EMOTIONS
from pyemo.errors import InputError
from pyemo.texts import sources
from pyemo.texts.sources import EmotionSource, Personas, Vignette

ALL = [*EMOTIONS, "neutral"]
SPLITS = ("train", "held_out")


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.casefold().replace("\u2019", "'"))


def six_grams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[start : start + 6]) for start in range(len(found) - 5)}


def forms(word: str) -> set[str]:
    """The word with every regular ending; a list, where the package has a pattern."""
    endings = ("", "s", "es", "ed", "er", "est", "ing", "ly", "ness")
    built = {word + ending for ending in endings}
    if word.endswith("y"):
        built |= {f"{word[:-1]}i{ending}" for ending in endings if ending}
    if word.endswith("e"):
        built |= {word[:-1] + ending for ending in ("ed", "er", "est", "ing")}
    return built


def naming(text: str, forbidden: tuple[str, ...]) -> list[str]:
    """The forbidden words, or their forms, that the text uses."""
    used = f" {' '.join(words(text))} "
    every_form = {form for word in forbidden for form in forms(" ".join(words(word)))}
    return sorted(form for form in every_form if f" {form} " in used)


def vignette_texts(name: str, *splits: str) -> list[str]:
    return [v.text for v in sources.vignettes(name) if v.split in (splits or SPLITS)]


# the built-in emotions


@pytest.mark.parametrize("name", EMOTIONS)
def test_every_emotion_has_seven_train_and_seven_held_out_vignettes(name: str) -> None:
    assert [len(vignette_texts(name, split)) for split in SPLITS] == [7, 7]


def test_neutral_has_fourteen_train_and_fourteen_held_out_vignettes() -> None:
    assert [len(vignette_texts("neutral", split)) for split in SPLITS] == [14, 14]


@pytest.mark.parametrize("name", ALL)
def test_a_vignette_file_is_for_the_emotion_that_names_it(name: str) -> None:
    assert sources._data("vignettes", f"{name}.toml")["emotion"] == name


@pytest.mark.parametrize("name", ALL)
def test_train_vignettes_come_before_held_out_ones(name: str) -> None:
    both = sources.vignettes(name)
    assert both == sources.vignettes(name, "train") + sources.vignettes(name, "held_out")


@pytest.mark.parametrize("name", EMOTIONS)
def test_no_vignette_names_its_emotion(name: str) -> None:
    forbidden = sources.forbidden_words(name)
    named = {text: naming(text, forbidden) for text in vignette_texts(name)}
    assert {text: found for text, found in named.items() if found} == {}


@pytest.mark.parametrize("name", EMOTIONS)
def test_the_forbidden_words_hold_the_emotions_own_names(name: str) -> None:
    emotion = EMOTIONS[name]
    assert {name, emotion.noun, *emotion.synonyms} <= set(sources.forbidden_words(name))


def test_no_neutral_vignette_names_any_emotion() -> None:
    forbidden = tuple({word for name in EMOTIONS for word in sources.forbidden_words(name)})
    named = {text: naming(text, forbidden) for text in vignette_texts("neutral")}
    assert {text: found for text, found in named.items() if found} == {}


def test_no_vignette_stands_twice() -> None:
    plain = [" ".join(words(text)) for name in ALL for text in vignette_texts(name)]
    assert len(set(plain)) == len(plain)


def test_no_held_out_vignette_shares_six_words_in_a_row_with_a_train_vignette() -> None:
    train, held_out = (
        {gram for name in ALL for text in vignette_texts(name, split) for gram in six_grams(text)}
        for split in SPLITS
    )
    assert train & held_out == set()


@pytest.mark.parametrize("name", ALL)
def test_a_vignette_has_forty_to_seventy_words(name: str) -> None:
    odd = [text for text in vignette_texts(name) if not 40 <= len(words(text)) <= 70]
    assert odd == []


@pytest.mark.parametrize("name", ALL)
def test_an_emotions_vignettes_are_as_long_as_the_others_within_a_fifth(name: str) -> None:
    average = mean(len(words(text)) for each in ALL for text in vignette_texts(each))
    assert mean(map(len, map(words, vignette_texts(name)))) == pytest.approx(average, rel=0.2)


@pytest.mark.parametrize("name", EMOTIONS)
def test_a_built_in_emotion_is_offered_with_all_its_texts(name: str) -> None:
    source = sources.emotion_source(name)
    assert source.word == name
    assert source.vignettes == sources.vignettes(name)
    assert source.forbidden == sources.forbidden_words(name)
    assert source.personas is not None


def test_a_noun_finds_the_emotion() -> None:
    assert sources.emotion_source("Anger") == sources.emotion_source("angry")


def test_an_unknown_emotion_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'angry'"):
        sources.vignettes("angri")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="no split 'test'; it is 'train' or 'held_out'"):
        sources.vignettes("angry", "test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("Worries came and went.", ("worry",)),
        ("HOPING, as ever", ("hope",)),
        ("They were on edge.", ("on edge",)),
        ("He hopped across the temperature gauge.", ()),
    ],
)
def test_words_used_finds_inflections_and_nothing_else(text: str, used: tuple[str, ...]) -> None:
    assert sources.words_used(text, ["worry", "hope", "on edge", "temper"]) == used


# neutral texts, prompts and pairs


def test_there_are_64_different_neutral_texts() -> None:
    assert len({" ".join(words(text)) for text in sources.neutral_texts()}) == 64


def test_neutral_texts_have_35_to_60_words() -> None:
    odd = [text for text in sources.neutral_texts() if not 35 <= len(text.split()) <= 60]
    assert odd == []


def test_no_neutral_text_names_an_emotion() -> None:
    forbidden = tuple({word for name in EMOTIONS for word in sources.forbidden_words(name)})
    named = {text: naming(text, forbidden) for text in sources.neutral_texts()}
    assert {text: found for text, found in named.items() if found} == {}


def test_neutral_texts_share_no_six_words_in_a_row() -> None:
    grams = [gram for text in sources.neutral_texts() for gram in six_grams(text)]
    assert len(set(grams)) == len(grams)


def test_the_five_story_templates_take_an_emotion() -> None:
    filled = {template.format(emotion="angry") for template in sources.story_templates()}
    assert len(filled) == 5
    assert all("angry" in prompt for prompt in filled)


def test_no_article_stands_before_the_emotion() -> None:
    templates = [*sources.story_templates(), sources.topic_template()]
    assert [t for t in templates if re.search(r"\ban? \{emotion\}", t)] == []


def test_the_neutral_template_takes_each_of_ten_topics() -> None:
    topics = sources.neutral_topics()
    filled = {sources.neutral_template().format(topic=topic) for topic in topics}
    assert len(filled) == len(topics) == 10


def test_the_topic_template_takes_each_of_40_topics_and_an_emotion() -> None:
    topics = sources.story_topics()
    template = sources.topic_template()
    filled = {template.format(topic=topic, emotion="angry") for topic in topics}
    assert len(filled) == len(topics) == 40
    assert "{topic}" in template
    assert "{emotion}" in template


def test_no_story_topic_names_an_emotion() -> None:
    forbidden = tuple({word for name in EMOTIONS for word in sources.forbidden_words(name)})
    topics = [*sources.story_topics(), *sources.neutral_topics()]
    named = {topic: naming(topic, forbidden) for topic in topics}
    assert {topic: found for topic, found in named.items() if found} == {}


def test_there_are_60_different_sentence_openings_without_a_trailing_blank() -> None:
    assert len({opening.strip() for opening in sources.sentence_openings()}) == 60
    assert all(opening == opening.strip() for opening in sources.sentence_openings())


@pytest.mark.parametrize("name", EMOTIONS)
def test_contrast_pairs_differ_in_the_persona_alone(name: str) -> None:
    pairs = sources.contrast_pairs(name)
    personas = sources.emotion_source(name).personas
    assert personas is not None
    assert tuple(pair.opening for pair in pairs) == sources.sentence_openings()
    assert {
        (
            pair.instruction.replace(personas.persona, "*"),
            pair.opposite_instruction.replace(personas.opposite, "*"),
        )
        for pair in pairs
    } == {("Act as if you are someone *.",) * 2}


@pytest.mark.parametrize("name", EMOTIONS)
def test_the_two_personas_have_nearly_the_same_number_of_words(name: str) -> None:
    personas = sources.emotion_source(name).personas
    assert personas is not None
    assert abs(len(words(personas.persona)) - len(words(personas.opposite))) <= 3


@pytest.mark.parametrize(("use", "count"), [("selection", 8), ("evaluation", 20)])
def test_prompts_are_counted_by_use(use: sources.Use, count: int) -> None:
    assert len(set(sources.prompts(use))) == count


def test_no_prompt_has_both_uses() -> None:
    assert set(sources.prompts("selection")) & set(sources.prompts("evaluation")) == set()


def test_no_prompt_names_an_emotion() -> None:
    forbidden = tuple({word for name in EMOTIONS for word in sources.forbidden_words(name)})
    named = {
        p: naming(p, forbidden) for use in ("selection", "evaluation") for p in sources.prompts(use)
    }
    assert {prompt: found for prompt, found in named.items() if found} == {}


def test_an_unknown_use_is_refused() -> None:
    with pytest.raises(InputError, match="no use 'demo'; it is 'selection' or 'evaluation'"):
        sources.prompts("demo")  # type: ignore[arg-type]


# a user's emotions file

JEALOUS = """
[emotion.jealous]
nouns = ["Jealousy"]
vignettes = ["He counted her messages.", "  She saw the other dress.  ", "Why did he get two?"]
held_out = ["The toast was to his brother again."]
personas = ["feeling jealous of a sibling", "feeling glad for a sibling"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "emotions.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_users_emotion_is_read_as_a_source(tmp_path: Path) -> None:
    assert sources.load_emotions_file(written(tmp_path, JEALOUS)) == {
        "jealous": EmotionSource(
            word="jealous",
            forbidden=("jealous", "jealousy"),
            vignettes=(
                Vignette("jealous", "He counted her messages.", "train"),
                Vignette("jealous", "She saw the other dress.", "train"),
                Vignette("jealous", "Why did he get two?", "train"),
                Vignette("jealous", "The toast was to his brother again.", "held_out"),
            ),
            personas=Personas("feeling jealous of a sibling", "feeling glad for a sibling"),
        )
    }


def test_vignettes_alone_are_enough(tmp_path: Path) -> None:
    path = written(tmp_path, '[emotion.shy]\nvignettes = ["One.", "Two.", "Three."]')
    shy = sources.load_emotions_file(str(path))["shy"]
    assert (shy.forbidden, shy.personas) == (("shy",), None)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeff" + JEALOUS)
    assert list(sources.load_emotions_file(path)) == ["jealous"]


def test_a_users_vignettes_that_name_the_emotion_are_found() -> None:
    named = Vignette("shy", "She spoke shyly.", "train")
    unnamed = Vignette("shy", "She spoke to her shoes.", "train")
    assert EmotionSource("shy", ("shy", "shyly"), (unnamed, named)).naming() == (named,)


def test_a_users_personas_make_contrast_pairs(tmp_path: Path) -> None:
    jealous = sources.load_emotions_file(written(tmp_path, JEALOUS))["jealous"]
    first = sources.contrast_pairs(jealous)[0]
    assert first.instruction == "Act as if you are someone feeling jealous of a sibling."
    assert first.opposite_instruction == "Act as if you are someone feeling glad for a sibling."


def test_contrast_pairs_without_personas_are_refused() -> None:
    with pytest.raises(InputError, match=r"'shy' has no personas.*\[emotion.shy\]"):
        sources.contrast_pairs(EmotionSource("shy", ("shy",), ()))


def test_a_missing_emotions_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml' cannot be read: .*give the path"):
        sources.load_emotions_file(tmp_path / "none.toml")


def test_a_folder_is_refused_as_an_emotions_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        sources.load_emotions_file(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "emotions.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot be read: .*TOML file"):
        sources.load_emotions_file(path)


THREE = 'vignettes = ["One.", "Two.", "Three."]'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[emotion", "is not a TOML file"),
        ("", "has no 'emotion'"),
        ("[emotions.shy]", "has no 'emotion'"),
        (f"[emotion.shy]\n{THREE}\n[model]", "unknown key 'model'"),
        ("emotion = 3", "describes no emotion"),
        ("[emotion]", "describes no emotion"),
        ("[emotion]\nshy = 3", r"\[emotion.shy\] is of type int, not a table"),
        ("[emotion.shy]", r"\[emotion.shy\] has no 'vignettes'"),
        (f"[emotion.shy]\n{THREE}\nvignette = []", "unknown key 'vignette'"),
        ("[emotion.shy]\nvignettes = []", "vignettes has 0 of at least 3"),
        ('[emotion.shy]\nvignettes = ["One.", "Two."]', "vignettes has 2 of at least 3"),
        ('[emotion.shy]\nvignettes = "One."', "vignettes is of type str, not a list"),
        ('[emotion.shy]\nvignettes = ["One.", 2, "Three."]', "vignettes number 2 is of type int"),
        ('[emotion.shy]\nvignettes = ["One.", "Two.", " "]', "vignettes number 3 is empty"),
        ('[emotion.shy]\nvignettes = ["One.", "Two.", "two. "]', "same text twice: 'two.'"),
        (f'[emotion.shy]\n{THREE}\nheld_out = ["One."]', "same text twice: 'One.'"),
        (f"[emotion.shy]\n{THREE}\n[emotion.coy]\n{THREE}", "same text twice: 'One.'"),
        (f"[emotion.shy]\n{THREE}\nheld_out = 1", "held_out is of type int, not a list"),
        (f"[emotion.shy]\n{THREE}\nnouns = [1]", "nouns number 1 is of type int"),
        (f'[emotion.shy]\n{THREE}\npersonas = ["shy"]', "personas has 1 phrases, not 2"),
        (f"[emotion.shy]\n{THREE}\npersonas = []", "personas has 0 phrases, not 2"),
        (f'[emotion.shy]\n{THREE}\npersonas = ["shy", "Shy"]', "personas has the same text"),
        (f"[emotion.Shy]\n{THREE}", "'Shy' cannot name an emotion"),
        (f'[emotion."../shy"]\n{THREE}', "'../shy' cannot name an emotion"),
        (f'[emotion.""]\n{THREE}', "'' cannot name an emotion"),
        (f"[emotion.{'s' * 41}]\n{THREE}", "cannot name an emotion"),
        (f"[emotion.neutral]\n{THREE}", "'neutral' names the texts"),
    ],
)
def test_a_bad_emotions_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        sources.load_emotions_file(written(tmp_path, text))
    assert "emotions.toml" in str(refusal.value)
