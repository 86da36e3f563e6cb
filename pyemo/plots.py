"""Pictures as PNG files: cosines as a heat map, values over layers as curves.

Owns how they look; knows nothing of where numbers come from. Needs the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyemo.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 120


def check_extra() -> None:
    """Raise unless pictures can be made, for commands that work for long before they make one.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _figure(1, 1)


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
    try:
        figure.savefig(path, format="png", dpi=_DPI)
    except OSError as error:
        raise InputError(
            f"picture {str(path)!r} cannot be written: {error.strerror or error}; name another "
            "folder"
        ) from error
