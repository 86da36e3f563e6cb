"""Independent judges of a text's emotion: what an effect of steering is shown with.

Four kinds behind one interface, none of which sees a steered model's inside: a sentence embedding
beside replies in a voice (the default) or beside scenes, the forced choice of another language
model than the steered one, and a Hugging Face text classifier. :func:`accuracy` and
:func:`voice_accuracy` say how far a judge can be trusted; docs/measurements/judges.md publishes it.

One file each; a new judge is a file and a line of :data:`JUDGES`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pyemo.errors import InputError
from pyemo.judges.accuracy import (
    JudgeAccuracy,
    accuracy,
    pair_accuracy,
    voice_accuracy,
    voice_pair_accuracy,
)
from pyemo.judges.classifier import ClassifierJudge
from pyemo.judges.embedder import Embedder, TextEmbedder
from pyemo.judges.forced_choice import NEUTRAL_REFERENCES, ForcedChoiceJudge
from pyemo.judges.judge import Judge, PairJudge, Scores, nearer
from pyemo.judges.minilm import MiniLMJudge
from pyemo.judges.voice import VoiceJudge

if TYPE_CHECKING:
    from pyemo.engine.engine import Engine

__all__ = [
    "JUDGES",
    "NEUTRAL_REFERENCES",
    "ClassifierJudge",
    "Embedder",
    "ForcedChoiceJudge",
    "Judge",
    "JudgeAccuracy",
    "MiniLMJudge",
    "PairJudge",
    "Scores",
    "TextEmbedder",
    "VoiceJudge",
    "accuracy",
    "default_judge",
    "load_judge",
    "nearer",
    "pair_accuracy",
    "voice_accuracy",
    "voice_pair_accuracy",
]


def _forced_choice(model: str, engine: Engine | None) -> Judge:
    if engine is None:
        from pyemo.engine.engine import Engine

        engine = Engine(model, n_ctx=4096)
    return ForcedChoiceJudge(engine)


JUDGES: dict[str, tuple[str, Callable[[str, Engine | None], Judge]]] = {
    "minilm": ("", lambda _model, _engine: MiniLMJudge()),
    "voice": ("", lambda _model, _engine: VoiceJudge()),
    "forced-choice": (
        "MODEL (another model than the steered one)",
        _forced_choice,
    ),
    "classifier": ("HUGGING_FACE_MODEL", lambda model, _engine: ClassifierJudge(model)),
}
"""Kind -> (what follows its colon, or nothing; how it is made). Help and errors read this table."""


def judge_forms() -> str:
    """Return how a judge is named: "minilm, forced-choice:MODEL (...) or classifier:..."."""
    *forms, last = [f"{kind}:{what}" if what else kind for kind, (what, _) in JUDGES.items()]
    return f"{', '.join(forms)} or {last}"


def default_judge() -> str:
    """Return the judge that agrees best with blind readers: "voice", or "minilm" without its need.

    Both know the 20 emotions and read the same embeddings; ``voice`` needs scikit-learn besides.
    """
    return "minilm" if find_spec("sklearn") is None else "voice"


def load_judge(name: str | None = None, engine: Engine | None = None) -> Judge:
    """Return the judge of that name: ``voice``, ``minilm``, ``forced-choice:MODEL`` or
    ``classifier:MODEL``.

    Args:
        name: None for :func:`default_judge`.
        engine: for ``forced-choice`` without a model: an open engine of the judging model.
    Raises:
        InputError: another name, or see the classes.
        MissingExtraError: what the judge needs is not installed.
    """
    name = default_judge() if name is None else name
    kind, _, model = name.partition(":")
    if kind in JUDGES:
        takes, make = JUDGES[kind]
        has_model = bool(model) or (kind == "forced-choice" and engine is not None)
        if bool(takes) == has_model:
            return make(model, engine)
    raise InputError(f"judge {name!r} is unknown; use {judge_forms()}")
