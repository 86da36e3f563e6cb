"""What a server is told: a file, the command line, or both; and what it would take."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import pyemo
from pages import ROOT, blocks, read

from pyemo.cli.serve import serve
from pyemo.errors import InputError
from pyemo.server.config import ServerConfig, read_config

TOML = """
model = "m"
port = 9000
vectors = "mine"
api_key = "one"
steering = "warm=0.1"
[presets.grumpy]
steering = {cold = 0.2}
guard = true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pyemo.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


def test_a_file_says_all_options(file: Path) -> None:
    config = read_config(file, {})
    assert (config.model, config.port, config.api_key) == ("m", 9000, ("one",))
    assert config.vectors == file.parent / "mine"
    assert config.presets["grumpy"].steering == {"cold": 0.2}


def test_the_command_line_wins(file: Path) -> None:
    config = read_config(file, {"port": 9001, "n_seq_max": 3})
    assert (config.port, config.n_seq_max, config.model) == (9001, 3, "m")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "prot"),
        ("port = 70000", "port = 70000"),
        ("port = 'x'", "port"),
        ("n_seq_max = 0", "n_seq_max = 0"),
        ("threads = 'many'", "threads"),
        ("drain = -1", "drain"),
        ("drain = nan", "drain"),
        ("[presets.x]\nstering = 'a'", "stering"),
        ("[presets.'a:b']\nsteering = 'a'", "'a:b'"),
        ("port = ", "not TOML"),
        ("host = '0.0.0.0'", "--api-key"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "pyemo.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        read_config(path, {})


def test_the_file_that_the_manual_shows_is_read(tmp_path: Path) -> None:
    (shown,) = blocks(read(ROOT / "docs" / "serving.md"), "toml")
    path = tmp_path / "pyemo.toml"
    path.write_text(shown, encoding="utf-8")
    config = read_config(path, {})
    assert config.presets["grumpy"].guard
    assert config.vectors == tmp_path / "my-vectors"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml"):
        read_config(tmp_path / "nowhere.toml", {})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_this_machines_own_addresses_need_no_key(host: str) -> None:
    assert read_config(None, {"host": host}).is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_other_addresses_need_a_key_or_no_auth(host: str) -> None:
    with pytest.raises(InputError, match="--no-auth"):
        read_config(None, {"host": host})
    assert not read_config(None, {"host": host, "api_key": ["k"]}).is_local
    assert not read_config(None, {"host": host, "no_auth": True}).is_local


def test_options_of_the_command_are_those_of_the_file() -> None:
    options = {param.name for param in serve.params}
    assert set(ServerConfig.model_fields) - options == {"presets"}
    assert options - set(ServerConfig.model_fields) == {"file", "dry_run", "as_json", "debug"}


def test_defaults_in_the_help_are_those_of_the_config() -> None:
    for param in serve.params:
        shown = re.search(r"\[default: (.*)\]", getattr(param, "help", "") or "")
        if shown:
            default = ServerConfig.model_fields[str(param.name)].default
            if default is None:  # decided at the start: said in words
                assert not re.search(r"^\d", shown[1])
                continue
            wanted = f"{default:g}" if isinstance(default, float) else str(default)
            wanted = "repetition-stop" if default is True else wanted
            assert shown[1] == wanted


def test_a_dry_run_says_memory_and_what_is_offered(tiny_model_path: Path, vectors: Path) -> None:
    result = pyemo("serve", "-m", tiny_model_path, "--vectors", vectors, "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert plan["vectors"] == ["calibrated", "cold", "other", "raw", "warm"]
    assert plan["models"] == ["llama"]
    memory = plan["memory"]
    parts = memory["weights"] + memory["kv_cache"] + memory["compute"]
    assert memory["weights"] > 0
    assert parts < memory["total"]


def test_a_dry_run_speaks_plainly(tiny_model_path: Path) -> None:
    result = pyemo("serve", "-m", tiny_model_path, "--dry-run", "--steering", "warm=0.1")
    assert result.exit_code == 0
    assert "memory: about" in result.stdout
    assert "default mood: warm=0.1" in result.stdout
    assert "access: this machine, without a key" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steering", "wram=0.1"], "no vector 'wram'"),
        (["--steering", "warm=much"], "not a number"),
        (["--vectors", "/nowhere"], "cannot be read"),
        (["-m", "nobody"], "no model 'nobody'"),
        (["--host", "203.0.113.7", "--no-auth"], "cannot listen on 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_said_at_the_start(
    tiny_model_path: Path, options: list[str], words: str
) -> None:
    result = pyemo("serve", "--port", 0, "-m", tiny_model_path, *options)
    assert result.exit_code == 1
    assert words in result.stderr
