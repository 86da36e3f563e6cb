"""``hf:org/repo/file.gguf``: by ``huggingface_hub`` itself, from an endpoint on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from pyemo.errors import VectorNotFoundError
from pyemo.files import hub_vectors

GOLDEN = Path(__file__).parents[1] / "golden"
REPO = "org/moods"
FILES = {
    "README.md": b"# moods",
    "warm/angry.gguf": (GOLDEN / "v1-residual.gguf").read_bytes(),
    "calm.gguf": (GOLDEN / "repeng.gguf").read_bytes(),
}
COMMIT = "c" * 40

needs_hub = pytest.mark.skipif(
    find_spec("huggingface_hub") is None,
    reason="the hub's own client is asked: install pyemo's extra `hub`",
)


class Hub(BaseHTTPRequestHandler):
    """The three answers of Hugging Face that its client asks for."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        resolve = f"/{REPO}/resolve/"
        if path.startswith(f"/api/models/{REPO}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in FILES.items()
            ]
            self._answer(json.dumps(entries).encode(), "application/json")
        elif path.startswith(f"/api/models/{REPO}"):
            info = {
                "id": REPO,
                "modelId": REPO,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in FILES],
            }
            self._answer(json.dumps(info).encode(), "application/json")
        elif path.startswith(resolve) and path[len(resolve) :].partition("/")[2] in FILES:
            self._answer(FILES[path[len(resolve) :].partition("/")[2]], "application/octet-stream")
        else:
            missing = "EntryNotFound" if path.startswith(f"/{REPO}/") else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", missing)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def inspect(name: str, endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: the client reads its settings when it is loaded."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-m", "pyemo", "inspect", name],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@needs_hub
def test_a_repository_lists_its_vectors_and_nothing_else(endpoint: str, tmp_path: Path) -> None:
    result = inspect(f"hf:{REPO}", endpoint, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [f"hf:{REPO}/calm.gguf", f"hf:{REPO}/warm/angry.gguf"]


@needs_hub
def test_a_vector_in_a_folder_is_fetched_once_and_read(endpoint: str, tmp_path: Path) -> None:
    result = inspect(f"hf:{REPO}/warm/angry.gguf", endpoint, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "angry (anger, rage" in result.stdout
    again = inspect(f"hf:{REPO}/warm/angry.gguf", "http://127.0.0.1:9", tmp_path)
    assert again.returncode == 0, again.stderr


@needs_hub
def test_a_file_that_is_not_there_is_named(endpoint: str, tmp_path: Path) -> None:
    result = inspect(f"hf:{REPO}/sad.gguf", endpoint, tmp_path)
    assert result.returncode == 1
    assert f"the repository {REPO} has no file sad.gguf" in result.stderr


def test_a_repository_without_a_file_names_its_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_vectors.hub, "list_files", lambda _repo: list(FILES))
    wanted = hub_vectors.parse(f"hf:{REPO}")
    assert wanted is not None
    with pytest.raises(VectorNotFoundError, match=r"has 2 vectors; name one, as in hf:org/moods/c"):
        hub_vectors.fetch(wanted)


def test_a_repository_without_vectors_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_vectors.hub, "list_files", lambda _repo: ["README.md"])
    with pytest.raises(VectorNotFoundError, match=r"no file that ends in \.gguf"):
        hub_vectors.moods(REPO)


@pytest.mark.parametrize("text", ["anger", "./hf.gguf", "org/repo", "C:/moods/a.gguf"])
def test_other_texts_are_not_for_the_hub(text: str) -> None:
    assert hub_vectors.parse(text) is None


@pytest.mark.parametrize("text", ["hf:", "hf:org", "hf:org/repo/../x.gguf", "hf:o/r/a/./b.gguf"])
def test_what_is_no_repository_is_refused_by_name(text: str) -> None:
    with pytest.raises(VectorNotFoundError, match=r"is not hf:org/repo/file\.gguf"):
        hub_vectors.parse(text)
