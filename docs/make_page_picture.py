"""Write docs/page.png anew: the server's page in Chromium, with a mood moved in mid-sentence.

Run by `make page-picture`; needs Chromium and the extra `browser`.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("page.png")
PROMPT = "Write a short message to your neighbour about the noise last night."


def take(page: Any, url: str) -> None:
    """Let the page answer, angrily and then lovingly, and take the picture."""
    page.goto(url)
    page.wait_for_selector(".strip")
    page.evaluate("$('length').value = 70; setMood('angry=0.027')")
    page.check("#compare")
    page.fill("#prompt", PROMPT)
    page.press("#prompt", "Enter")
    page.wait_for_function("running && running.reply.tokens.length > 24")
    page.evaluate("setMood('loving=0.03')")
    page.wait_for_function("!running")
    page.screenshot(path=PICTURE)


def main() -> None:
    """Serve the default model, and write the picture."""
    command = [sys.executable, "-m", "pyemo", "serve", "--port", "0", "--threads", "1", "--json"]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as server,
        sync_playwright() as driver,
    ):
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        # the page's policy forbids to evaluate strings, which is how it is driven here
        page = browser.new_page(viewport={"width": 1180, "height": 860}, bypass_csp=True)
        take(page, url)
        browser.close()
        server.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
