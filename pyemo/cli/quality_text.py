"""A set's quality in words and numbers, for ``extract`` and ``inspect``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyemo.extract.quality import SetQuality


def quality_lines(quality: SetQuality) -> Iterator[str]:
    """Yield a few lines on a set: its separation, accuracy and stability at one layer."""
    at = quality.layer
    why = "the middle" if quality.held_out is None else "chosen on training texts"
    yield f"{len(quality.emotions)} emotions at layer {quality.layers[at]}, {why}"
    for separation in quality.separations:
        yield f"mean pairwise cosine {separation.mean_cosine[at]:+.2f}, {separation.centring}"
        if separation.opposites:
            pairs = (f"{a}/{b} {c[at]:+.2f}" for (a, b), c in separation.opposites.items())
            yield f"  opposites: {', '.join(pairs)}"
    held_out = quality.held_out
    if held_out is not None:
        yield (
            f"held-out accuracy {held_out.top_1}, by chance {held_out.chance:.0%}; mean rank "
            f"{held_out.mean_rank[at]:.1f} of {held_out.n_emotions}"
        )
    if quality.split_half is not None:
        yield f"cosine between halves of the texts {quality.split_half[at]:.2f}"


def layer_table(quality: SetQuality) -> Iterator[str]:
    """Yield a table of every layer: mean cosines, held-out accuracy and rank, stability."""
    columns: list[tuple[str, list[str]]] = [("layer", [str(layer) for layer in quality.layers])]
    for number, separation in enumerate(quality.separations, start=1):
        values = [f"{value:+.3f}" for value in separation.mean_cosine]
        columns.append((f"cosine {number}", values))
    held_out = quality.held_out
    if held_out is not None:
        shares = [f"{hits / held_out.n_texts:.0%}" for hits in held_out.hits]
        columns.append(("accuracy", shares))
        columns.append(("rank", [f"{rank:.1f}" for rank in held_out.mean_rank]))
    if quality.split_half is not None:
        columns.append(("halves", [f"{value:.2f}" for value in quality.split_half]))
    widths = [max(map(len, [title, *cells])) for title, cells in columns]
    yield "  ".join(title.rjust(width) for (title, _), width in zip(columns, widths, strict=True))
    for at in range(len(quality.layers)):
        row = (cells[at].rjust(width) for (_, cells), width in zip(columns, widths, strict=True))
        mark = " *" if held_out is not None and at == quality.layer else ""
        yield "  ".join(row) + mark
