"""The study's report in a real browser: nothing is loaded, nothing spills on a phone.

    make study-report
    python -m pytest -m quality tests/quality/test_report_page.py

Needs the page, which is not in git, and Chromium (Debian's package ``chromium``).
``REPORT_SHOTS=FOLDER`` keeps the screenshots.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import ROOT

PAGE = ROOT / "docs" / "study" / "report.html"

pytestmark = [
    pytest.mark.quality,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium"),
    pytest.mark.skipif(not PAGE.exists(), reason="needs the page: make study-report"),
]

WIDTHS = {"desktop": 1280, "phone": 390}
# Measured inside a frame, since a headless window has a least width of its own.
FRAME = """<!doctype html><iframe id="f" style="width:{width}px;height:900px;border:0" src="{url}">
</iframe><script>
addEventListener("load", () => {{
  const page = document.getElementById("f").contentDocument;
  page.querySelectorAll("details").forEach((d) => (d.open = true));
  const wide = [...page.querySelectorAll("body *")].filter((e) =>
    !e.closest(".scroll, figure, svg") && e.getBoundingClientRect().right > {width} + 1);
  document.title = [page.documentElement.scrollWidth, wide.length,
    page.querySelectorAll("svg").length, page.querySelectorAll("section").length].join(" ");
}});</script>"""


def browse(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--allow-file-access-from-files", "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}", *arguments, url,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.mark.parametrize("screen", WIDTHS)
def test_nothing_is_wider_than_the_screen_and_every_finding_is_there(
    screen: str, tmp_path: Path
) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=WIDTHS[screen], url=PAGE.as_uri()))
    dom = browse(tmp_path, frame.as_uri(), "--virtual-time-budget=10000", "--dump-dom").stdout
    title = re.search(r"<title>([\d ]+)</title>", dom)
    assert title is not None
    width, n_wide, n_figures, n_sections = map(int, title[1].split())
    assert width <= WIDTHS[screen]
    assert n_wide == 0
    assert n_sections == 8
    assert n_figures >= 8


def test_the_page_asks_for_nothing_and_says_nothing_on_the_console(tmp_path: Path) -> None:
    found = browse(tmp_path, PAGE.as_uri(), "--dump-dom")
    assert "CONSOLE" not in found.stderr
    page = PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']+""", page)
    assert "@import" not in page


def test_the_page_prints(tmp_path: Path) -> None:
    pdf = tmp_path / "report.pdf"
    browse(tmp_path, PAGE.as_uri(), f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert pdf.stat().st_size > 50_000


@pytest.mark.skipif("REPORT_SHOTS" not in os.environ, reason="for looking at")
def test_screenshots(tmp_path: Path) -> None:
    folder = Path(os.environ["REPORT_SHOTS"])
    for screen, width in WIDTHS.items():
        frame = tmp_path / f"{screen}.html"
        frame.write_text(
            f'<body style="margin:0"><iframe style="width:{width}px;height:6000px;border:0" '
            f'src="{PAGE.as_uri()}"></iframe>'
        )
        shot = folder / f"{screen}.png"
        browse(tmp_path, frame.as_uri(), f"--screenshot={shot}", f"--window-size={width},6000")
        assert shot.exists()
