"""Promises of ``pyemo.files.hub``, on a client of our own for ``huggingface_hub``: no network."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from pyemo.errors import MissingExtraError, ModelNotFoundError
from pyemo.files import hub


class Client(ModuleType):
    """What ``pyemo.files.hub`` uses of ``huggingface_hub``; keeps what it was asked to download."""

    def __init__(self, folder: Path, files: tuple[str, ...]) -> None:
        super().__init__("huggingface_hub")
        self.__spec__ = ModuleSpec("huggingface_hub", None)
        self.folder = folder
        self.files = files
        self.error: Exception | None = None
        self.downloads: list[tuple[str, str]] = []

    def list_repo_files(self, repo: str) -> list[str]:
        self._fail()
        return list(self.files)

    def try_to_load_from_cache(self, repo: str, file: str) -> str | None:
        path = self.folder / repo / file
        return str(path) if path.is_file() else None

    def hf_hub_download(self, repo: str, file: str) -> str:
        self._fail()
        path = self.folder / repo / file
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        self.downloads.append((repo, file))
        return str(path)

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    files = ("README.md", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-Q4_K_M.gguf")
    client = Client(tmp_path, files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    return client


@pytest.mark.parametrize(
    ("text", "repo", "file"),
    [
        ("org/repo", "org/repo", None),
        ("org/repo-GGUF:m.gguf", "org/repo-GGUF", "m.gguf"),
        ("o.r-g_1/re.po:sub/m.gguf", "o.r-g_1/re.po", "sub/m.gguf"),
    ],
)
def test_repository_is_recognised(text: str, repo: str, file: str | None) -> None:
    assert hub.parse(text) == hub.HubFile(repo, file)


@pytest.mark.parametrize(
    "text", ["name", "folder/m.gguf", "/a/b", "a/b/c", "a b/c", "a/b:c", "C:\\a\\b.gguf", "a/", ""]
)
def test_other_text_is_no_repository(text: str) -> None:
    assert hub.parse(text) is None


def test_named_file_is_downloaded(client: Client, tmp_path: Path) -> None:
    path = hub.fetch(hub.HubFile("org/repo", "m-Q8_0.gguf"))
    assert path == tmp_path / "org/repo/m-Q8_0.gguf"
    assert client.downloads == [("org/repo", "m-Q8_0.gguf")]


def test_file_fetched_before_needs_no_network(client: Client) -> None:
    wanted = hub.HubFile("org/repo", "m-Q8_0.gguf")
    first = hub.fetch(wanted)
    client.error = OSError("no network")
    assert hub.fetch(wanted) == first


def test_repository_alone_gives_the_preferred_format(client: Client) -> None:
    hub.fetch(hub.HubFile("org/repo", None))
    assert client.downloads == [("org/repo", "m-Q4_K_M.gguf")]


def test_only_file_is_taken_whatever_its_format(client: Client) -> None:
    client.files = ("m-IQ3_XS.gguf",)
    hub.fetch(hub.HubFile("org/repo", None))
    assert client.downloads == [("org/repo", "m-IQ3_XS.gguf")]


def test_repository_of_split_files_lists_them(client: Client) -> None:
    client.files = ("m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf")
    with pytest.raises(ModelNotFoundError, match=r"org/repo:m-Q4_K_M-00001-of-00002\.gguf"):
        hub.fetch(hub.HubFile("org/repo", None))


def test_repository_without_gguf_is_refused(client: Client) -> None:
    client.files = ("model.safetensors",)
    with pytest.raises(ModelNotFoundError, match="org/repo holds no GGUF file"):
        hub.fetch(hub.HubFile("org/repo", None))


@pytest.mark.parametrize(
    ("bases", "said"),
    [
        (("GatedRepoError", "RepositoryNotFoundError"), "licence to be accepted"),
        (("RepositoryNotFoundError",), "no public repository org/repo"),
        (("RemoteEntryNotFoundError", "EntryNotFoundError"), r"org/repo has no file m\.gguf"),
        (("LocalEntryNotFoundError", "EntryNotFoundError"), "Check the network"),
        (("ConnectError",), "Check the network"),
        (("HFValidationError",), "not the name of a Hugging Face repository"),
    ],
)
def test_failure_of_the_hub_says_what_to_do(
    client: Client, bases: tuple[str, ...], said: str
) -> None:
    kind: type[Exception] = Exception
    for name in reversed(bases):
        kind = type(name, (kind,), {})
    client.error = kind("as the hub says it")
    with pytest.raises(ModelNotFoundError, match=said):
        hub.fetch(hub.HubFile("org/repo", "m.gguf"))


def test_missing_client_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="pip install huggingface_hub"):
        hub.fetch(hub.HubFile("org/repo", "m.gguf"))
