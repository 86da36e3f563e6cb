"""Pictures are PNG files, and wrong shapes are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pyemo import plots
from pyemo.errors import InputError, MissingExtraError

PNG = b"\x89PNG\r\n\x1a\n"

pytest.importorskip("matplotlib", reason="pictures need pyemo's extra `plot`")


def test_a_heat_map_is_a_png(tmp_path: Path) -> None:
    plots.heat_map(tmp_path / "a.png", np.eye(3), ["a", "b", "c"], "title")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_layer_curves_are_a_png(tmp_path: Path) -> None:
    curves = {"one": np.arange(4.0), "other": np.ones(4)}
    plots.layer_curves(tmp_path / "a.png", range(1, 5), curves, "title", marked=2)
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_cosines_that_are_no_square_of_the_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a square"):
        plots.heat_map(tmp_path / "a.png", np.eye(3), ["a", "b"], "title")


def test_a_curve_of_another_length_than_the_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 values for 2 layers"):
        plots.layer_curves(tmp_path / "a.png", [1, 2], {"one": np.ones(3)}, "title")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        plots.heat_map(tmp_path / "none" / "a.png", np.eye(1), ["a"], "title")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pyemo\[plot\]'"):
        plots.check_extra()
