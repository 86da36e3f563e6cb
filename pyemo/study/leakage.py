"""Finding 7: does steering bring up scripts that neither the prompt nor the unsteered text uses?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyemo.study import figures
from pyemo.study.finding import Finding, Verdict, described, table
from pyemo.study.regime_map import RANDOM
from pyemo.study.statistics import PairedTest, paired_difference
from pyemo.study.writing_systems import SCRIPTS, scripts_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = 7
QWEN = "qwen"


@dataclass(frozen=True, eq=False)
class Leak:
    """What one batch of texts has in foreign scripts.

    Attributes:
        emotion: whose direction, or "random".
        token_share: (n_texts,), share of generated tokens in foreign scripts.
        mass: (n_texts,), mean probability before sampling of foreign scripts.
        tokens: (script, text of the token), each once, most frequent first.
        is_coherent: whether the strength keeps enough texts coherent.
    """

    model: str
    architecture: str
    emotion: str
    strength: float
    token_share: npt.NDArray[np.float64]
    mass: npt.NDArray[np.float64]
    tokens: tuple[tuple[str, str], ...]
    is_coherent: bool


def foreign_scripts(prompt: str, unsteered: str) -> npt.NDArray[np.bool_]:
    """Return which of :data:`SCRIPTS` neither text uses, bool (n_scripts,)."""
    known = scripts_of(prompt) | scripts_of(unsteered)
    return np.array([name not in known for name in SCRIPTS])


def measure(
    prompts: Sequence[str],
    unsteered: Sequence[str],
    pieces: Sequence[Sequence[tuple[str, str]]],
    masses: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], tuple[tuple[str, str], ...]]:
    """Return (token shares, masses, foreign tokens) of one batch; see :class:`Leak`.

    Args:
        pieces: for each text its tokens as (script, text).
        masses: (n_texts, max_tokens, n_scripts), rows of zeros after a text's end.
    """
    shares, mean_masses = np.zeros(len(prompts)), np.zeros(len(prompts))
    counts: dict[tuple[str, str], int] = {}
    for i, (prompt, twin) in enumerate(zip(prompts, unsteered, strict=True)):
        foreign = foreign_scripts(prompt, twin)
        names = {name for name, is_foreign in zip(SCRIPTS, foreign, strict=True) if is_foreign}
        found = [piece for piece in pieces[i] if piece[0] in names]
        for piece in found:
            counts[piece] = counts.get(piece, 0) + 1
        shares[i] = len(found) / max(1, len(pieces[i]))
        written = masses[i].sum(axis=1) > 0
        if written.any():
            mean_masses[i] = float(masses[i][written][:, foreign].sum(axis=1).mean())
    tokens = tuple(sorted(counts, key=lambda piece: (-counts[piece], piece)))
    return shares, mean_masses, tokens


@dataclass(frozen=True)
class ModelLeak:
    """One model's verdict.

    Attributes:
        test: foreign mass under emotions less that under random directions, paired by strength and
            prompt, over coherent strengths; None where no strength is coherent.
        first: lowest strength at which a foreign token is written under an emotion, None if never.
        first_random: the same under a random direction.
        starts_coherent: whether the former is a coherent strength; None if there is none.
    """

    model: str
    architecture: str
    test: PairedTest | None
    first: float | None
    first_random: float | None
    starts_coherent: bool | None


def by_model(leaks: Sequence[Leak]) -> list[ModelLeak]:
    """Return each model's leak against its random direction."""
    out = []
    for model in dict.fromkeys(leak.model for leak in leaks):
        mine = [leak for leak in leaks if leak.model == model]
        control = {leak.strength: leak for leak in mine if leak.emotion == RANDOM}
        steered = [leak for leak in mine if leak.emotion != RANDOM and leak.strength > 0]
        pairs: dict[float, list[npt.NDArray[np.float64]]] = {}
        for leak in steered:
            if leak.is_coherent and leak.strength in control:
                pairs.setdefault(leak.strength, []).append(leak.mass)
        # One pair for each prompt and strength: the emotions' mean beside the random direction.
        a = [x for s, rows in pairs.items() for x in np.mean(rows, axis=0)]
        b = [x for s in pairs for x in control[s].mass]
        writing = [leak for leak in steered if leak.tokens]
        first = min((leak.strength for leak in writing), default=None)
        random = [s for s, leak in control.items() if leak.tokens and s > 0]
        out.append(
            ModelLeak(
                model,
                mine[0].architecture,
                paired_difference(a, b, seed=SEED) if a else None,
                first,
                min(random, default=None),
                None
                if first is None
                else any(leak.is_coherent for leak in writing if leak.strength == first),
            )
        )
    return out


def finding(leaks: Sequence[Leak]) -> Finding:
    """Return the finding over all models."""
    models = by_model(leaks)
    qwen = [m for m in models if QWEN in m.architecture.lower() or QWEN in m.model.lower()]
    tested = [m for m in qwen if m.test is not None]
    if not qwen:
        verdict, reason = Verdict.CANNOT_SAY, "no Qwen model in this study"
    elif not tested:
        verdict, reason = Verdict.CANNOT_SAY, "no coherent strength to test on Qwen"
    elif all(m.test is not None and m.test.difference.low > 0 for m in tested):
        verdict = Verdict.HOLDS
        reason = (
            "Qwen gives foreign scripts more probability under emotions than under random "
            "directions"
        )
    else:
        verdict = Verdict.DOES_NOT
        reason = (
            "at coherent strengths Qwen does not favour foreign scripts beyond a random direction"
        )
    return described(
        "leakage",
        numbers=dict(seed=SEED),
        ours="; ".join(_words(m) for m in models),
        verdict=verdict,
        reason=reason,
        tables=(
            table(
                "leakage-models",
                (
                    "model",
                    "foreign mass, emotions less random",
                    "low",
                    "high",
                    "p",
                    "first foreign token at strength",
                    "the same, random",
                    "coherent there",
                ),
                [
                    (
                        m.model,
                        *((None,) * 4 if m.test is None else (*m.test.difference, m.test.p)),
                        m.first,
                        m.first_random,
                        m.starts_coherent,
                    )
                    for m in models
                ],
            ),
            table(
                "leakage-tokens",
                (
                    "model",
                    "direction",
                    "strength",
                    "coherent",
                    "foreign tokens, most frequent first",
                ),
                [
                    (
                        leak.model,
                        leak.emotion,
                        leak.strength,
                        leak.is_coherent,
                        " ".join(f"{text.strip()} ({name})" for name, text in leak.tokens[:12]),
                    )
                    for leak in leaks
                    if leak.tokens
                ],
            ),
            table(
                "leakage",
                ("model", "direction", "strength", "coherent", "token share", "probability"),
                [
                    (
                        leak.model,
                        leak.emotion,
                        leak.strength,
                        leak.is_coherent,
                        float(leak.token_share.mean()),
                        float(leak.mass.mean()),
                    )
                    for leak in leaks
                ],
                is_long=True,
            ),
        ),
        figure=(lambda: draw(leaks)) if leaks else None,
    )


def _words(m: ModelLeak) -> str:
    if m.test is None:
        return f"{m.model}: no coherent strength"
    return f"{m.model}: foreign mass {m.test.difference} over random"


def draw(leaks: Sequence[Leak]) -> Figure:
    """Return the foreign probability over strength, a panel for each model."""
    models = list(dict.fromkeys(leak.model for leak in leaks))
    figure, axes = figures.panels(len(models))
    emotions = list(dict.fromkeys(leak.emotion for leak in leaks))
    for axis, model in zip(axes, models, strict=True):
        for k, emotion in enumerate(emotions):
            mine = sorted(
                (leak for leak in leaks if (leak.model, leak.emotion) == (model, emotion)),
                key=lambda leak: leak.strength,
            )
            axis.plot(
                [leak.strength for leak in mine],
                [max(1e-9, float(leak.mass.mean())) for leak in mine],
                "--" if emotion == RANDOM else "-",
                color="black" if emotion == RANDOM else figures.COLORS[k % len(figures.COLORS)],
                label=emotion,
            )
        axis.set(
            title=model, xlabel="strength", ylabel="probability of foreign scripts", yscale="log"
        )
    figures.legend(figure, axes[0])
    return figure
