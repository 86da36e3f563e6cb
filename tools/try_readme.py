"""Do what the README shows, from top to bottom, as a stranger does: with an installed pyemo.

    build/try/bin/python tools/try_readme.py

Runs each `pyemo` command of its shell blocks and its Python blocks, which are one program, in a new
empty folder, and shows what they print. `make` needs a clone and is left out. A chat is told one
line and ends; a server is asked once, with a mood, and is ended by SIGTERM. `my.gguf`, which a
reader would have made, is the bundled vector for anger. Ends with 1 if anything failed.
Needs the extra `serve`.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
PYEMO = Path(sys.executable).with_name("pyemo")
SECONDS = 600.0
"""For one command at most."""
MAKE_VECTOR = """
import pyemo
model = pyemo.Model.load("smollm2-135m-instruct")
pyemo.ControlVector.load("anger", model=model).save("my.gguf")
"""


def commands(page: str) -> Iterator[list[str]]:
    """Yield the words of each `pyemo` command in the shell blocks of a page."""
    for block in re.findall(r"^```sh\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "pyemo":
                yield words[1:]


def program(page: str) -> str:
    """Return the Python blocks of a page as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL))


def run(command: list[str], folder: Path, stdin: str = "") -> str | None:
    """Run a command and show its output; return what failed, or None."""
    done = subprocess.run(
        command,
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(done.stdout + done.stderr, flush=True)
    if done.returncode != 0:
        return f"it ended with {done.returncode}"
    return None if done.stdout.strip() else "it printed nothing"


def serve(folder: Path) -> str | None:
    """Start `pyemo serve`, ask it once with a mood and end it; return what failed, or None."""
    command = [str(PYEMO), "serve", "--port", "0", "--json"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        first = server.stdout.readline()
        if not first:
            return server.communicate()[1]
        body = {
            "model": "smollm2-135m-instruct",
            "messages": [{"role": "user", "content": "How was your day?"}],
            "steering": "anger=0.02",
            "max_tokens": 24,
        }
        request = urllib.request.Request(
            json.loads(first)["url"] + "/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                print(json.load(answer)["choices"][0]["message"]["content"], flush=True)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(SECONDS)
        return None if server.returncode == 0 else f"it ended with {server.returncode}"


def main() -> int:
    page = README.read_text(encoding="utf-8")
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "readme.py").write_text(program(page), encoding="utf-8")
        made = run([sys.executable, "-c", MAKE_VECTOR + "print('my.gguf')"], folder)
        if made:
            failed.append(f"my.gguf: {made}")
        for words in (["readme.py"], *commands(page)):
            shown = "the Python blocks" if words == ["readme.py"] else shlex.join(["pyemo", *words])
            print(f"$ {shown}", flush=True)
            began = time.monotonic()
            if words == ["readme.py"]:
                why = run([sys.executable, "readme.py"], folder)
            elif words[0] == "serve":
                why = serve(folder)
            else:
                why = run([str(PYEMO), *words], folder, "Hello.\n" if words[0] == "chat" else "")
            print(f"# {why or 'done'}, {time.monotonic() - began:.0f} s", flush=True)
            if why:
                failed.append(f"{shown}: {why}")
    print("\n".join(failed) or "all done")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
