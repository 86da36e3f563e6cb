"""The plug-in in the real ``llm``: steered replies, options, and a mood that ``llm -c`` keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from commands import pyemo
from engines import random_vector
from tiny_models import TinyModel

llm = pytest.importorskip("llm", reason="install pyemo's extra `clients`, which has llm")
from llm import cli as llm_cli  # noqa: E402
from llm.plugins import load_plugins, pm  # noqa: E402

from pyemo import ControlVector, Model, llm_plugin  # noqa: E402
from pyemo.vectors.metadata import VectorMetadata  # noqa: E402

PROMPT = "the happy story"
PLAIN = ("--threads", 1, "-n", 6, "--seed", 7)
SHORT = ("-o", "max_tokens", "6", "-o", "seed", "7")


class TinyModels:
    """A plug-in that has the tiny llama as one more of pyemo's models."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @llm.hookimpl
    def register_models(self, register: Callable[..., None]) -> None:
        register(llm_plugin.PyemoModel(str(self._path)), aliases=("tiny",))


@pytest.fixture(scope="module", autouse=True)
def _plug_ins(tiny_model_path: Path) -> Iterator[None]:
    """Load no other plug-in that happens to be installed, and offer the tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm.plugins.LLM_LOAD_PLUGINS", "pyemo")
        load_plugins()
        patch.setattr("pyemo.engine.threads.available_cores", lambda: 1)
        more = TinyModels(tiny_model_path)
        pm.register(more)
        yield
        pm.unregister(more)


@pytest.fixture(scope="module")
def moods(tiny: Callable[[str], TinyModel], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two vectors for the tiny llama, strong enough to change what it says."""
    folder = tmp_path_factory.mktemp("vectors")
    metadata = VectorMetadata(unit="raw", architecture="llama")
    for seed in (1, 2):
        vector = random_vector(tiny("llama"), layers=[1, 2, 3], seed=seed, metadata=metadata)
        vector.save(folder / f"v{seed}.gguf")
    return [f"{folder}/v1.gguf=2", f"{folder}/v2.gguf=2"]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``call(*words)`` runs ``llm`` in a folder of its own."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    return lambda *words, **more: CliRunner().invoke(llm_cli.cli, list(words), **more)


@pytest.fixture
def run(call: Callable[..., Result]) -> Callable[..., str]:
    """``run(*words)`` runs ``llm`` and returns what it printed."""

    def run(*words: str) -> str:
        result = call(*words)
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    return run


@pytest.fixture
def fail(call: Callable[..., Result]) -> Callable[..., str]:
    """``fail(*words)`` runs ``llm``, which must fail, and returns what it said."""

    def fail(*words: str) -> str:
        result = call(*words)
        assert result.exit_code == 1
        return str(result.output)

    return fail


@pytest.fixture
def run_text(tiny_model_path: Path) -> Callable[..., str]:
    """``run_text(*words)`` returns what ``pyemo run`` prints for the same."""

    def run_text(*words: str) -> str:
        result = pyemo("run", "-m", tiny_model_path, *PLAIN, *words, PROMPT)
        assert result.exit_code == 0, result.stderr
        return str(result.stdout)

    return run_text


def steerings(run: Callable[..., str], n: int = 1) -> list[str]:
    """Return the moods of the last replies in the log, by the names of their vectors."""
    logged = json.loads(run("logs", "-n", str(n), "--json"))
    return [turn["response_json"]["steering"] for turn in logged]


def test_entry_point_is_the_plug_in() -> None:
    found = [point for point in entry_points(group="llm") if point.name == "pyemo"]
    assert [point.load() for point in found] == [llm_plugin]


def test_model_of_the_catalog_writes_pyemo_run_s_steered_text(run: Callable[..., str]) -> None:
    prompt = "How was your day?"
    said = run("-m", "pyemo/smollm2-135m-instruct", *SHORT, "-o", "mood", "anger=0.03", prompt)
    expected = pyemo("run", "--threads", 1, "-n", 6, "--seed", 7, "-c", "anger=0.03", prompt)
    assert said == expected.stdout


def test_mood_steers(
    run: Callable[..., str], run_text: Callable[..., str], moods: list[str]
) -> None:
    said = run("-m", "tiny", *SHORT, "-o", "mood", moods[0], PROMPT)
    assert said == run_text("--cvec", moods[0])
    assert said != run_text()


def test_options_are_those_of_pyemo_run(
    run: Callable[..., str], run_text: Callable[..., str], moods: list[str]
) -> None:
    options = {"temperature": "1.1", "top_k": "20", "top_p": "0.9", "min_p": "0.1", "stop": "a"}
    options |= {"scope": "reply", "schedule": "half-life:4"}
    words = [word for name, value in options.items() for word in ("-o", name, value)]
    said = run(
        "-m", "tiny", *SHORT, "-o", "guard", "1", "-o", "mood", " + ".join(moods), *words, PROMPT
    )
    typed = [w for name, value in options.items() for w in (f"--{name.replace('_', '-')}", value)]
    assert said == run_text("--guard", "-c", moods[0], "-c", moods[1], *typed)


def test_reply_fits_a_schema(run: Callable[..., str]) -> None:
    said = run("-m", "tiny", "--schema", "age int", "-o", "max_tokens", "60", PROMPT)
    assert list(json.loads(said)) == ["age"]
    assert isinstance(json.loads(said)["age"], int)


def test_any_other_gguf_may_be_named_and_is_kept(
    run: Callable[..., str],
    run_text: Callable[..., str],
    tiny: Callable[[str], TinyModel],
    tiny_model_path: Path,
) -> None:
    base = ("-o", "model", str(tiny("gpt2").path))
    other = run("-m", "tiny", *SHORT, *base, PROMPT)
    assert other == str(pyemo("run", "-m", tiny("gpt2").path, *PLAIN, PROMPT).stdout)
    assert other != run_text()
    run("-c", *SHORT, "the")
    assert json.loads(run("logs", "-n", "1", "--json"))[0]["response_json"]["model"] == base[2]
    assert run("-m", "tiny", *SHORT, PROMPT) == run_text()


def test_system_prompt_reaches_the_model(
    run: Callable[..., str], run_text: Callable[..., str]
) -> None:
    said = run("-m", "tiny", *SHORT, "-s", "the story", PROMPT)
    assert said == run_text("--system", "the story")


def test_continued_conversation_keeps_its_mood(run: Callable[..., str], moods: list[str]) -> None:
    run("-m", "tiny", *SHORT, "-o", "mood", moods[0], "-o", "scope", "reply", PROMPT)
    run("-c", *SHORT, "the")
    kept = json.loads(run("logs", "-n", "1", "--json"))[0]["response_json"]
    assert (kept["mood"], kept["scope"]) == (moods[0], "reply")
    run("-c", *SHORT, "-o", "mood", moods[1], "the")
    run("-c", *SHORT, "the")
    assert steerings(run) == ["v2=2"]
    run("-c", *SHORT, "-o", "mood", "", "the")
    run("-c", *SHORT, "the")
    assert steerings(run) == ["unsteered"]


def test_second_turn_is_told_the_first(run: Callable[..., str]) -> None:
    run("-m", "tiny", *SHORT, PROMPT)
    run("-c", *SHORT, "the")
    first, second = sorted(turn["input_tokens"] for turn in json.loads(run("logs", "--json")))
    assert second > first + 6


def test_another_conversation_begins_unsteered(
    run: Callable[..., str], run_text: Callable[..., str], moods: list[str]
) -> None:
    run("-m", "tiny", *SHORT, "-o", "mood", moods[0], PROMPT)
    assert run("-m", "tiny", *SHORT, PROMPT) == run_text()


def test_chat_keeps_its_mood(
    call: Callable[..., Result],
    run: Callable[..., str],
    run_text: Callable[..., str],
    moods: list[str],
) -> None:
    words = ["chat", "-m", "tiny", *SHORT, "-o", "mood", moods[0]]
    result = call(*words, input=f"{PROMPT}\nthe\nquit\n")
    assert result.exit_code == 0, result.output
    assert run_text("--cvec", moods[0]).strip() in result.output
    assert steerings(run, 2) == ["v1=2"] * 2


def test_tokens_and_reason_are_logged(run: Callable[..., str], moods: list[str]) -> None:
    run("-m", "tiny", *SHORT, "-o", "mood", moods[0], PROMPT)
    logged = json.loads(run("logs", "-n", "1", "--json"))[0]
    assert logged["output_tokens"] == 6
    assert logged["response_json"]["stop_reason"] == "length"
    assert logged["response_json"]["notes"]  # a raw vector's fit is said


def test_what_cannot_be_done_is_said(fail: Callable[..., str], moods: list[str]) -> None:
    assert "no vectors come with" in fail("-m", "tiny", "-o", "mood", "angri", PROMPT)
    assert "moood" in fail("-m", "tiny", "-o", "moood", "anger", PROMPT)
    nowhere = fail("-m", "tiny", "-o", "mood", moods[0], "-o", "scope", "nowhere", PROMPT)
    assert "scope 'nowhere'" in nowhere


def test_vectors_are_listed_with_their_strengths(
    run: Callable[..., str], fail: Callable[..., str]
) -> None:
    lines = run("pyemo", "vectors").splitlines()
    assert len(lines) == 20
    model = Model.load("smollm2-135m-instruct")
    found = ControlVector.load("angry", model).recommended(model)
    assert lines[1].split() == ["angry", f"{found.strength:g}", f"({found.source})"]
    assert found.source != "default"
    assert "no model" in fail("pyemo", "vectors", "-m", "nonesuch")


def test_commands_of_llm_bring_no_engine() -> None:
    code = "import sys, pyemo.llm_plugin; "
    code += "print({'pyemo._core', 'llama_cpp', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
