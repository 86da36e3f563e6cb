"""Promises of ``pyemo.files.hub``, on a client of our own for ``huggingface_hub``: no network."""

from __future__ import annotations

import errno
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pyemo.errors import MissingExtraError, ModelNotFoundError
from pyemo.files import hub
from pyemo.files.hub_names import HubFile

PARTS = ("q/m-Q8_0-00001-of-00002.gguf", "q/m-Q8_0-00002-of-00002.gguf")


class CacheNotFound(Exception):
    """As in ``huggingface_hub``: there is no cache folder yet."""


class Client(ModuleType):
    """What ``pyemo.files.hub`` uses of ``huggingface_hub``; keeps what it was asked to download."""

    def __init__(self, folder: Path, files: tuple[str, ...]) -> None:
        super().__init__("huggingface_hub")
        self.__spec__ = ModuleSpec("huggingface_hub", None)
        self.folder = folder
        self.files = files
        self.error: Exception | None = None
        self.downloads: list[tuple[str, str]] = []

    CacheNotFound = CacheNotFound

    def list_repo_files(self, repo: str, *, revision: str | None) -> list[str]:
        self._fail()
        return list(self.files)

    def try_to_load_from_cache(self, repo: str, file: str, *, revision: str | None) -> str | None:
        path = self.folder / repo / (revision or "main") / file
        return str(path) if path.is_file() else None

    def hf_hub_download(self, repo: str, file: str, *, revision: str | None) -> str:
        self._fail()
        if file not in self.files:
            raise type("EntryNotFoundError", (Exception,), {})("as the hub says it")
        path = self.folder / repo / (revision or "main") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        self.downloads.append((repo, file))
        return str(path)

    def scan_cache_dir(self) -> SimpleNamespace:
        raise CacheNotFound

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    files = ("README.md", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-Q4_K_M.gguf")
    client = Client(tmp_path, files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    return client


def test_named_file_is_downloaded(client: Client, tmp_path: Path) -> None:
    path = hub.fetch(HubFile("org/repo", "m-Q8_0.gguf"))
    assert path == tmp_path / "org/repo/main/m-Q8_0.gguf"
    assert client.downloads == [("org/repo", "m-Q8_0.gguf")]


def test_file_fetched_before_needs_no_network(client: Client) -> None:
    wanted = HubFile("org/repo", "m-Q8_0.gguf")
    first = hub.fetch(wanted)
    client.error = OSError("no network")
    assert hub.fetch(wanted) == first


def test_repository_alone_gives_the_preferred_format(client: Client) -> None:
    hub.fetch(HubFile("org/repo", None))
    assert client.downloads == [("org/repo", "m-Q4_K_M.gguf")]


def test_quantization_of_a_repository_is_downloaded(client: Client) -> None:
    hub.fetch(HubFile("org/repo", tag="q8_0"))
    assert client.downloads == [("org/repo", "m-Q8_0.gguf")]


def test_revision_is_asked_for(client: Client, tmp_path: Path) -> None:
    path = hub.fetch(HubFile("org/repo", "m-Q8_0.gguf", revision="v2"))
    assert path == tmp_path / "org/repo/v2/m-Q8_0.gguf"


@pytest.mark.parametrize(
    "wanted", [HubFile("org/repo", PARTS[0]), HubFile("org/repo"), HubFile("org/repo", tag="Q8_0")]
)
def test_all_parts_are_downloaded_and_the_first_is_given(
    client: Client, tmp_path: Path, wanted: HubFile
) -> None:
    client.files = (*PARTS, "README.md")
    assert hub.find(HubFile("org/repo", PARTS[0])) is None
    assert hub.fetch(wanted) == tmp_path / "org/repo/main" / PARTS[0]
    assert client.downloads == [("org/repo", part) for part in PARTS]
    assert hub.find(HubFile("org/repo", PARTS[0])) == tmp_path / "org/repo/main" / PARTS[0]


def test_set_with_one_part_here_is_fetched_anew(client: Client) -> None:
    client.files = PARTS
    client.hf_hub_download("org/repo", PARTS[0], revision=None)
    client.downloads.clear()
    hub.fetch(HubFile("org/repo", PARTS[0]))
    assert client.downloads == [("org/repo", part) for part in PARTS]


def test_part_that_the_repository_lacks_is_named(client: Client) -> None:
    client.files = PARTS[:1]
    with pytest.raises(ModelNotFoundError, match=r"no file q/m-Q8_0-00002-of-00002\.gguf"):
        hub.fetch(HubFile("org/repo", PARTS[0]))


def test_later_part_names_the_first(client: Client) -> None:
    said = r"part 2 of 2 .* name the first: org/repo:q/m-Q8_0-00001-of-00002\.gguf"
    with pytest.raises(ModelNotFoundError, match=said):
        hub.fetch(HubFile("org/repo", PARTS[1]))


def test_repository_without_gguf_is_refused(client: Client) -> None:
    client.files = ("model.safetensors",)
    with pytest.raises(ModelNotFoundError, match="org/repo holds no GGUF file"):
        hub.fetch(HubFile("org/repo", None))


def failure(*bases: str, status: int | None = None, of: type[Exception] = Exception) -> Exception:
    """Return an error as the hub's client raises it: known by its name and its bases' names."""
    kind = of
    for name in reversed(bases):
        kind = type(name, (kind,), {})
    error = kind("as the hub says it")
    error.__dict__["response"] = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            failure("GatedRepoError", "RepositoryNotFoundError", status=403),
            "licence to be accepted",
        ),
        (failure("HfHubHTTPError", status=403), "hf auth login"),
        (failure("RepositoryNotFoundError", status=401), "no public repository org/repo"),
        (failure("RevisionNotFoundError"), "has no revision v2"),
        (
            failure("RemoteEntryNotFoundError", "EntryNotFoundError"),
            r"org/repo has no file m\.gguf",
        ),
        (failure("LocalEntryNotFoundError", "EntryNotFoundError"), "Check the network"),
        (failure("OfflineModeIsEnabled", of=ConnectionError), "HF_HUB_OFFLINE forbids"),
        (failure("HfHubHTTPError", status=429), "try again in some minutes"),
        (failure("HfHubHTTPError", status=503), "try again in some minutes"),
        (OSError(errno.ENOSPC, "No space left on device"), "no room on the disk"),
        (failure("ConnectError"), "Check the network"),
        (failure("HFValidationError"), "not the name of a Hugging Face repository"),
    ],
)
def test_failure_of_the_hub_says_what_to_do(client: Client, error: Exception, said: str) -> None:
    client.error = error
    with pytest.raises(ModelNotFoundError, match=said):
        hub.fetch(HubFile("org/repo", "m.gguf", revision="v2"))


@pytest.mark.parametrize("wanted", [HubFile("org/repo"), HubFile("org/repo", tag="Q4_K_M")])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (failure("RepositoryNotFoundError"), "no public repository org/repo"),
        (failure("GatedRepoError", "RepositoryNotFoundError"), "licence to be accepted"),
        (failure("ConnectError"), "Check the network"),
    ],
)
def test_failure_to_list_a_repository_says_what_to_do(
    client: Client, wanted: HubFile, error: Exception, said: str
) -> None:
    client.error = error
    with pytest.raises(ModelNotFoundError, match=said):
        hub.fetch(wanted)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real client without a network, on a cache laid out as its own; the snapshot's folder."""
    why = "runs where huggingface_hub is installed"
    client = pytest.importorskip("huggingface_hub", reason=why)
    constants = pytest.importorskip("huggingface_hub.constants", reason=why)
    repo = tmp_path / "models--org--repo"
    snapshot = repo / "snapshots" / ("0" * 40)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "blobs").mkdir()
    (snapshot / "q").mkdir(parents=True)
    for name in ("scan_cache_dir", "try_to_load_from_cache", "hf_hub_download"):
        monkeypatch.setattr(client, name, partial(getattr(client, name), cache_dir=tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("wanted", [HubFile("org/repo"), HubFile("org/repo", tag="q8_0")])
def test_repository_fetched_before_is_found_without_a_network(
    offline: Path, caplog: pytest.LogCaptureFixture, wanted: HubFile
) -> None:
    for part in PARTS:
        (offline / part).write_bytes(b"")
    assert hub.fetch(wanted) == offline / PARTS[0]
    assert "taking org/repo" in caplog.text


@pytest.mark.parametrize("repo", ["org/repo", "org/never-fetched"])
def test_client_without_a_network_says_what_to_do(offline: Path, repo: str) -> None:
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE forbids"):
        hub.fetch(HubFile(repo))


def test_missing_client_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="pip install huggingface_hub"):
        hub.fetch(HubFile("org/repo", "m.gguf"))
