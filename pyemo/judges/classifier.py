"""A Hugging Face text classifier as judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pyemo.emotions import resolve
from pyemo.errors import InputError
from pyemo.judges.embedder import load_transformers, sentence_windows, special_tokens
from pyemo.judges.judge import Scores


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
        transformers = load_transformers("a classifier judge")
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
        self._before, self._after = special_tokens(self._tokenizer)
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
        windows = sentence_windows(text, self._tokenizer, self._max_pieces) or [[]]
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
