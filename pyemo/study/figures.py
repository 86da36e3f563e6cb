"""How the study's figures look: one palette, one size, text as text.

Matplotlib is imported when a figure is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyemo.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by most colour-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = {"generation": "-", "comprehension": "--"}

_known: dict[str, str] = {}


def panels(
    n: int, *, width: float = 4.2, height: float = 3.2, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``n`` panels side by side, or in rows of ``columns``."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "the report's figures need matplotlib; run: pip install 'pyemo[study]'"
        ) from error

    across = columns or n
    down = math.ceil(n / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = [figure.add_subplot(down, across, i + 1) for i in range(n)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def assign_colors(models: Sequence[str]) -> None:
    """Give these models the first colours, in their order."""
    _known.clear()
    for model in models:
        color(model)


def color(name: str) -> str:
    """Return the colour of a model, the same in every figure of a run."""
    if name not in _known:
        _known[name] = COLORS[len(_known) % len(COLORS)]
    return _known[name]


def line(model: str, method: str = "") -> dict[str, Any]:
    """Return the keywords of a model's line: a colour for the model, a dash for the method."""
    label = f"{model}, {method}" if method else model
    return {"color": color(model), "linestyle": _STYLES.get(method, "-"), "label": label}


def legend(figure: Figure, axis: Axes) -> None:
    """Put one legend for all panels below them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, max(1, len(labels))), fontsize=8
    )


def svg(figure: Figure, name: str) -> str:
    """Return a figure as SVG for a page: the same figure and name give the same text.

    Names keep what is inside one figure apart from what is inside another.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context(
        {"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}
    ):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
