"""The words for the 20 emotions."""

import pytest

from pyemo.emotions import ALIASES, EMOTIONS, PAPER_OPPOSITES, opposite_of, resolve
from pyemo.errors import InputError


def test_the_twenty_are_the_papers_in_its_order():
    assert tuple(EMOTIONS) == (
        "happy", "sad", "calm", "desperate", "afraid", "angry", "proud", "guilty", "nervous",
        "hopeful", "brooding", "gloomy", "reflective", "enthusiastic", "hostile", "loving",
        "exasperated", "blissful", "anxious", "grateful",
    )  # fmt: skip


@pytest.mark.parametrize("name", EMOTIONS)
def test_every_adjective_resolves_to_itself(name):
    assert resolve(name) == name


@pytest.mark.parametrize("name", EMOTIONS)
def test_every_noun_resolves_to_its_adjective(name):
    assert resolve(EMOTIONS[name].noun) == name


@pytest.mark.parametrize(
    ("word", "name"),
    [("anger", "angry"), ("sadness", "sad"), ("fear", "afraid"), ("joy", "happy")],
)
def test_common_words_resolve(word, name):
    assert resolve(word) == name


def test_case_and_blanks_do_not_matter():
    assert resolve("  Anger ") == "angry"


def test_no_word_names_two_emotions():
    words = [w for e in EMOTIONS.values() for w in (e.name, e.noun, *e.synonyms)]
    assert len(words) == len(set(words)) == len(EMOTIONS) + len(ALIASES)


def test_a_misspelt_emotion_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"no emotion 'angri'; did you mean 'angry'"):
        resolve("angri")


def test_a_misspelt_noun_offers_the_adjective():
    with pytest.raises(InputError, match="did you mean 'sad'"):
        resolve("sadnes")


def test_a_word_near_nothing_is_answered_with_all_the_names():
    with pytest.raises(InputError, match=r"happy, sad, .*grateful.*pyemo inspect --emotions"):
        resolve("xyzzy")


@pytest.mark.parametrize("wrong", [None, 3, b"angry", ["angry"]])
def test_something_that_is_no_string_is_refused(wrong):
    with pytest.raises(InputError, match="named by a string"):
        resolve(wrong)


def test_a_hostile_long_name_gives_a_short_message():
    with pytest.raises(InputError) as caught:
        resolve("a" * 1_000_000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("one", "other"), PAPER_OPPOSITES)
def test_the_papers_pairs_are_opposites_both_ways(one, other):
    assert (opposite_of(one), opposite_of(other)) == (other, one)


@pytest.mark.parametrize("name", [n for n in EMOTIONS if EMOTIONS[n].opposite])
def test_an_opposite_is_an_emotion_of_the_other_valence(name):
    other = EMOTIONS[opposite_of(name)]
    assert EMOTIONS[name].valence * other.valence < 0


def test_reflective_has_no_opposite():
    assert opposite_of("reflective") is None


def test_opposite_takes_an_alias():
    assert opposite_of("love") == "hostile"


@pytest.mark.parametrize("name", EMOTIONS)
def test_valence_and_arousal_lie_within_minus_one_and_one(name):
    emotion = EMOTIONS[name]
    assert -1 <= emotion.valence <= 1
    assert -1 <= emotion.arousal <= 1


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        EMOTIONS["bored"] = EMOTIONS["calm"]
