"""Pictures as PNG files: cosines as a heat map, values over layers or strengths as curves.

Owns how they look; knows nothing of where numbers come from. Needs the extra ``plot``.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyemo.choices import REGIMES
from pyemo.errors import InputError, MissingExtraError
from pyemo.files.targets import checked_target, unless_it_begins, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyemo.strengths.trials import Trial

_DPI = 120
_KIND = "a PNG picture"
_NO_PICTURE = unless_it_begins(b"\x89PNG\r\n\x1a\n", "is not a PNG picture")


def check_extra() -> None:
    """Raise unless pictures can be made, for commands that work for long before they make one.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _figure(1, 1)


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise unless a picture may be written to ``path``, where one may be already.

    Raises:
        InputError: what is there is no PNG picture, or the folder refuses files.
    """
    checked_target(path, _KIND, _NO_PICTURE)


def heat_map(
    path: str | Path, cosines: npt.NDArray[np.floating[Any]], names: Sequence[str], title: str
) -> None:
    """Write a square of cosines, one row and column for each name; blue -1, white 0, red 1.

    Args:
        cosines: (n, n).
        names: of rows and columns, n.
    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: another shape; a file that cannot be written.
    """
    values = np.asarray(cosines, np.float64)
    if values.shape != (len(names), len(names)):
        raise InputError(f"{len(names)} names for cosines of shape {values.shape}; give a square")
    side = 2.5 + 0.28 * len(names)
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title, fontsize="medium")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    _save(figure, path)


def layer_curves(
    path: str | Path,
    layers: Sequence[int],
    curves: Mapping[str, npt.NDArray[np.floating[Any]]],
    title: str,
    *,
    marked: int | None = None,
) -> None:
    """Write values over layers, one curve for each label.

    Args:
        curves: label -> one value for each layer.
        marked: a layer to mark with a vertical line.
    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: a curve of another length; a file that cannot be written.
    """
    figure = _figure(8, 4.5)
    axes = figure.add_subplot()
    for label, values in curves.items():
        if len(values) != len(layers):
            raise InputError(f"curve {label!r} has {len(values)} values for {len(layers)} layers")
        axes.plot(list(layers), list(values), marker=".", label=label)
    if marked is not None:
        axes.axvline(marked, color="0.6", linestyle="--")
    axes.axhline(0, color="0.8", linewidth=0.8)
    axes.set_xlabel("layer")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    _save(figure, path)


def strength_curves(
    path: str | Path,
    trials: Mapping[str, Sequence[Trial]],
    title: str,
) -> None:
    """Write what strengths do: ratio, repetition and judged emotion, one row of pictures a vector.

    Bands are regimes, halfway to the neighbouring strengths. The noise floor, dashed, is what
    random directions of equal norm do to the judged emotion.

    Args:
        trials: vector -> its trials by ascending strength.
    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: a file that cannot be written.
    """
    figure = _figure(12, 0.6 + 2.9 * len(trials))
    rows = figure.subplots(len(trials), 3, squeeze=False)
    for axes, (vector, own) in zip(rows, trials.items(), strict=True):
        strengths = [trial.strength for trial in own]
        ratio, repetition, emotion = axes
        low, value, high = np.array(
            [[max(end, 1e-3) for end in _ends(trial)] for trial in own], np.float64
        ).T
        ratio.fill_between(strengths, low, high, alpha=0.25, linewidth=0)
        ratio.plot(strengths, value, marker=".")
        ratio.set_yscale("log")
        ratio.axhline(1, color="0.5", linewidth=0.8)
        ratio.set_ylabel(f"{vector}\nperplexity ratio")
        repetition.plot(strengths, [trial.distinct_tokens for trial in own], marker=".")
        repetition.set_ylim(0, 1.02)
        repetition.set_ylabel("distinct trigrams")
        judged = [trial for trial in own if trial.effect is not None]
        if judged:
            at = [trial.strength for trial in judged]
            emotion.plot(at, [trial.effect for trial in judged], marker=".", label="vector")
            noise = [trial.noise for trial in judged]
            emotion.plot(at, noise, color="0.4", linestyle="--", label="random")
            emotion.legend(fontsize="small")
        else:
            emotion.text(0.5, 0.5, "not judged", ha="center", transform=emotion.transAxes)
        emotion.set_ylabel("judged emotion")
        for one in axes:
            _bands(one, strengths, [trial.report.regime.value for trial in own])
            one.set_xlabel("strength")
    figure.legend(
        handles=[_patch(color, name) for name, color in _REGIME_COLORS.items()],
        loc="outside lower center",
        ncols=len(_REGIME_COLORS),
        fontsize="small",
    )
    figure.suptitle(title, fontsize="medium")
    _save(figure, path)


_REGIME_COLORS = dict(zip(REGIMES, ("#dddddd", "#bfe3c0", "#f6d7a7", "#f2b5b0"), strict=True))


def _ends(trial: Trial) -> tuple[float, float, float]:
    ratio = trial.report.ratio
    return ratio.low, ratio.value, ratio.high


def _bands(axes: Any, strengths: Sequence[float], regimes: Sequence[str]) -> None:
    middles = [(a + b) / 2 for a, b in itertools.pairwise(strengths)]
    edges = [strengths[0], *middles, strengths[-1]]
    for begin, end, regime in zip(edges, edges[1:], regimes, strict=False):
        axes.axvspan(begin, end, color=_REGIME_COLORS[regime], alpha=0.5, linewidth=0)


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, alpha=0.5, label=label)


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure, its size in inches; no window system is touched."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "pictures need matplotlib, which is not installed: pip install 'pyemo[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: str | Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    write_whole(path, data.getvalue(), _KIND, _NO_PICTURE)
