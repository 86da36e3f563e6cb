"""``pyemo calibrate`` on a tiny model: what it writes, and that nothing harms a vector file."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pyemo import ControlVector, Model, judges
from pyemo.cli import main
from pyemo.errors import MissingExtraError, VectorFileError
from pyemo.vectors.metadata import Calibration

FAST = ("--threads", "1", "--lengths", "6,8")


class LengthJudge:
    """Scores a text by its length."""

    name = "length"

    def scores(self, texts: Sequence[str], emotions: Sequence[str]) -> np.ndarray:
        scores = [float(len(text) % 3) for text in texts]
        return np.array([[score] * len(emotions) for score in scores]).reshape(-1, len(emotions))


@pytest.fixture(autouse=True)
def known_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "load_judge", lambda name="minilm", engine=None: LengthJudge())


@pytest.fixture
def calm(vectors: Path, tmp_path: Path) -> Path:
    """A vector file of the test's own."""
    return Path(shutil.copy(vectors / "warm.gguf", tmp_path / "calm.gguf"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("the happy story\na sad dog\n", encoding="utf-8")
    return path


def pyemo(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)])


def scripted(monkeypatch: pytest.MonkeyPatch, window: tuple[float, float] | None) -> None:
    """Let every calibration find this window."""
    from pyemo.strengths import calibration

    def found(self: calibration.Calibrator, vector: ControlVector) -> calibration.CalibrationResult:
        if window is None:
            return calibration.CalibrationResult(vector.name, (), "nothing moves", ())
        model = self.engine.model
        value = Calibration(model.file_sha256, model.name, "greedy", 8, window, window[0])
        return calibration.CalibrationResult(vector.name, (value,), "", ())

    monkeypatch.setattr(calibration.Calibrator, "calibrate", found)


def test_it_runs_through_and_reports(model: Path, calm: Path, prompts: Path) -> None:
    result = pyemo(*FAST, "-m", model, calm, "--prompts", prompts, "--json")
    assert result.exit_code == 0, result.stderr
    (value,) = json.loads(result.stdout)
    assert value["vector"] == "calm"
    assert value["judge"] == "length"
    assert value["trials"]
    kept = ControlVector.load(calm).calibration_for(Model.load(model).file_sha256)
    assert (value["calibrations"] == []) == (kept is None)
    assert len(value["calibrations"]) == 2 or value["reason"] is not None


def test_what_is_found_is_in_the_file_and_run_takes_it(
    model: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ControlVector.load(calm)
    scripted(monkeypatch, (0.1, 0.3))
    result = pyemo(*FAST, "-m", model, calm)
    assert result.exit_code == 0, result.stderr
    assert "surgical from 0.1 to 0.3, recommended 0.1, for 8 tokens" in result.stdout
    after = ControlVector.load(calm)
    assert all((after.directions[i] == before.directions[i]).all() for i in before.layers)
    ran = CliRunner().invoke(
        main, ["run", "--json", "-n", "2", "-m", str(model), "-c", str(calm), "the"]
    )
    (term,) = json.loads(ran.stdout)["steering"]["terms"]
    assert (term["strength"], term["strength_source"]) == (0.1, "calibration")
    assert term["window"] == [0.1, 0.3]


def test_a_window_that_does_not_exist_is_a_result(
    model: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = calm.read_bytes()
    scripted(monkeypatch, None)
    result = pyemo(*FAST, "-m", model, calm)
    assert result.exit_code == 0
    assert "no surgical strength: nothing moves; not written" in result.stdout
    assert calm.read_bytes() == before


def test_a_window_that_is_refuted_goes_and_those_of_others_stay(
    model: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = Model.load(model).file_sha256
    mine, longer, other = (
        Calibration(sha, "m", "greedy", n, (0.1, 0.3), 0.1)
        for sha, n in ((sha256, 8), (sha256, 48), ("0" * 64, 8))
    )
    vector = ControlVector.load(calm)
    for entry in (mine, longer, other):
        vector = vector.with_calibration(entry)
    vector.save(calm)
    scripted(monkeypatch, None)
    result = pyemo(*FAST, "-m", model, calm)
    assert result.exit_code == 0
    assert "no surgical strength: nothing moves" in result.stdout
    assert ControlVector.load(calm).metadata.calibrations == (longer, other)


def test_what_another_run_has_written_in_the_meantime_stays(
    model: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyemo.strengths import calibration

    other = Calibration("0" * 64, "m", "greedy", 8, (0.1, 0.3), 0.1)
    scripted(monkeypatch, (0.1, 0.3))
    found = calibration.Calibrator.calibrate

    def slow(self: calibration.Calibrator, vector: ControlVector) -> calibration.CalibrationResult:
        ControlVector.load(calm).with_calibration(other).save(calm)
        return found(self, vector)

    monkeypatch.setattr(calibration.Calibrator, "calibrate", slow)
    assert pyemo(*FAST, "-m", model, calm).exit_code == 0
    kept = ControlVector.load(calm).metadata.calibrations
    assert {entry.model_sha256 for entry in kept} == {"0" * 64, Model.load(model).file_sha256}


WITH_LENGTH_JUDGE = f"""
from __future__ import annotations
import numpy as np
from pyemo import judges
from pyemo.cli import main

{inspect.getsource(LengthJudge)}
judges.load_judge = lambda *_: LengthJudge()
main(prog_name="pyemo")
"""


def test_a_calibration_that_is_interrupted_leaves_the_file_as_it_was(
    model: Path, calm: Path
) -> None:
    before = calm.read_bytes()
    arguments = ["calibrate", "--threads", "1", "--lengths", "40,200", "-m", str(model), str(calm)]
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_LENGTH_JUDGE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        assert process.stderr is not None
        while "40 tokens: " not in (line := process.stderr.readline()):
            assert line, "it ended before a strength was tried"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert calm.read_bytes() == before


def test_a_file_where_a_folder_was_named_is_refused(
    model: Path, vectors: Path, tmp_path: Path
) -> None:
    target = tmp_path / "taken"
    target.write_text("mine", encoding="utf-8")
    result = pyemo(*FAST, "-m", model, vectors / "warm.gguf", "-o", target)
    assert result.exit_code == 1
    assert "cannot be written to" in result.stderr
    assert target.read_text(encoding="utf-8") == "mine"


def test_a_folder_is_calibrated_file_by_file_into_another(
    model: Path, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("warm", "cold"):
        shutil.copy(vectors / f"{name}.gguf", source)
    scripted(monkeypatch, (0.1, 0.3))
    result = pyemo(*FAST, "-m", model, source, "-o", target)
    assert result.exit_code == 0, result.stderr
    sha256 = Model.load(model).file_sha256
    for name in ("warm", "cold"):
        assert ControlVector.load(target / f"{name}.gguf").calibration_for(sha256) is not None
        assert ControlVector.load(source / f"{name}.gguf").calibration_for(sha256) is None


def test_layers_make_another_vector(
    model: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, (0.1, 0.3))
    target = tmp_path / "short.gguf"
    result = pyemo(*FAST, "-m", model, calm, "--layers", "2:4", "-o", target)
    assert result.exit_code == 0, result.stderr
    assert ControlVector.load(target).layers == (2, 3)
    result = pyemo(*FAST, "-m", model, calm, "--layers", "auto", "-o", target, "--json")
    (value,) = json.loads(result.stdout)
    assert [found["name"] for found in value["ranges"]] == [
        "all",
        "lower half",
        "middle",
        "upper half",
    ]
    assert pyemo(*FAST, "-m", model, calm, "--layers", "2:4").exit_code == 2


def test_extract_can_calibrate_what_it_makes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, (0.1, 0.3))
    target = tmp_path / "happy.gguf"
    options = ["-o", str(target), "-m", str(model), "--threads", "1", "--json", "--calibrate"]
    result = CliRunner().invoke(main, ["extract", "happy", "-r", "reading", *options])
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)["calibrations"]
    assert found["calibrations"] == [{"n_tokens": 8, "window": [0.1, 0.3], "strength": 0.1}]
    assert ControlVector.load(target).calibration_for(Model.load(model).file_sha256) is not None


def test_extract_refuses_to_calibrate_what_it_cannot(tmp_path: Path) -> None:
    options = ["-r", "reading", "--calibrate", "--backend", "transformers"]
    result = CliRunner().invoke(main, ["extract", "happy", "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == 1
    assert "needs the GGUF file that will run" in result.stderr


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("other", (), "other weights"),
        ("raw", (), "does not say its unit"),
        ("missing", (), "no vector file"),
        ("warm", ("--lengths", "8,6"), "are not ascending"),
        ("warm", ("--lengths", "6,100000"), "leaves no room"),
    ],
)
def test_what_cannot_be_calibrated_is_named(
    model: Path, vectors: Path, tmp_path: Path, name: str, options: tuple[str, ...], message: str
) -> None:
    target = tmp_path / "out.gguf"
    source = vectors / f"{name}.gguf"
    result = pyemo("--threads", 1, "-m", model, source, "-o", target, *options)
    assert result.exit_code == 1, result.stdout
    assert message in result.stderr
    assert not target.exists()


def test_a_judge_that_is_not_installed_is_named(
    model: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str = "minilm", engine: object = None) -> None:
        raise MissingExtraError("the judge is not installed: pip install 'pyemo[judge]'")

    monkeypatch.setattr(judges, "load_judge", missing)
    result = pyemo(*FAST, "-m", model, calm)
    assert result.exit_code == 1
    assert "pyemo[judge]" in result.stderr


KILLED = """
    import itertools, sys
    from pathlib import Path
    from pyemo import ControlVector
    from pyemo.vectors.metadata import Calibration

    path = Path(sys.argv[1])
    for i in itertools.count(1):
        found = Calibration("0" * 64, "m", "greedy", 8, (0.1, 0.3), 0.1, '{"try": %d}' % i)
        ControlVector.load(path).with_calibration(found).save(path)
        print(i, flush=True)
"""


def test_a_calibration_killed_while_it_writes_leaves_a_whole_file(calm: Path) -> None:
    before = ControlVector.load(calm)
    seen = set()
    for delay_s in np.linspace(0.0, 0.03, 5):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(calm)],
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "1\n"  # it is writing, over and over
            time.sleep(delay_s)
            os.kill(process.pid, signal.SIGKILL)
        after = ControlVector.load(calm)
        assert all((after.directions[i] == before.directions[i]).all() for i in before.layers)
        (found,) = after.metadata.calibrations
        seen.add(found.evidence)
    assert seen


KEEPER = """
import sys
from pathlib import Path
from pyemo import ControlVector
from pyemo.cli.calibrate_job import keep_calibrations
from pyemo.vectors.metadata import Calibration
path, sha = Path(sys.argv[1]), sys.argv[2] * 64
vector = ControlVector.load(path)
print("ready", flush=True)
sys.stdin.readline()
for n in range(1, 21):
    one = Calibration(sha, "m", "greedy", n, (0.01, 0.02), 0.015)
    keep_calibrations(path, vector, sha, [n], [one])
"""


def test_two_runs_at_once_on_one_file_keep_all_calibrations(vectors: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes((vectors / "warm.gguf").read_bytes())
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", KEEPER, str(path), digit],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for digit in "ab"
    ]
    for run in runs:
        assert run.stdout.readline()  # type: ignore[union-attr]
    for run in runs:
        run.stdin.write(b"go\n")  # type: ignore[union-attr]
        run.stdin.flush()  # type: ignore[union-attr]
    for run in runs:
        run.communicate()
        assert run.returncode == 0
    assert len(ControlVector.load(path).metadata.calibrations) == 40
    assert [file.name for file in tmp_path.iterdir()] == ["v.gguf"]


def test_what_was_found_is_shown_where_it_cannot_be_kept(
    model: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise VectorFileError("No space left on device")

    scripted(monkeypatch, (0.1, 0.3))
    monkeypatch.setattr(ControlVector, "save", full)
    result = pyemo(*FAST, "-m", model, calm)
    assert result.exit_code == 1
    assert "surgical from 0.1 to 0.3" in result.stderr


def test_what_is_found_with_a_system_line_stands_beside_what_is_found_without(
    model: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, (0.1, 0.3))
    assert pyemo(*FAST, "-m", model, calm).exit_code == 0
    scripted(monkeypatch, (0.2, 0.4))
    result = pyemo(*FAST, "-m", model, calm, "--system-line", "You are calm.")
    assert result.exit_code == 0, result.stderr
    found = ControlVector.load(calm).metadata
    assert found.system_line == "You are calm."
    assert [one.strength for one in found.calibrations] == [0.1]
    assert [one.strength for one in found.line_calibrations] == [0.2]
    inspected = CliRunner().invoke(main, ["inspect", str(calm)])
    assert "system line  'You are calm.'" in inspected.stdout
    scripted(monkeypatch, None)
    assert pyemo(*FAST, "-m", model, calm, "--system-line", "You are ill.").exit_code == 0
    assert ControlVector.load(calm).metadata == found  # nothing was found with this one


def test_a_system_line_without_a_chat_template_is_refused(model: Path, calm: Path) -> None:
    result = pyemo(*FAST, "-m", model, calm, "--raw", "--system-line", "You are calm.")
    assert result.exit_code == 1
    assert "--system-line needs a chat template, and --raw takes none" in result.stderr


def test_gain_and_damage_of_what_is_recommended_are_in_the_file(
    model: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyemo.strengths import calibration

    def found(self: calibration._Search, how: object, start: int) -> calibration.CalibrationResult:
        mine = self._trials.engine.model
        value = Calibration(mine.file_sha256, mine.name, "greedy", 40, (0.1, 0.3), 0.1, "{}")
        return calibration.CalibrationResult(self._vector.name, (value,), "", ())

    monkeypatch.setattr(calibration._Search, "run", found)
    result = pyemo("--threads", 1, "-m", model, calm, "--lengths", "40")
    assert result.exit_code == 0, result.stderr
    (kept,) = ControlVector.load(calm).metadata.calibrations
    voice = json.loads(kept.evidence)["voice"]
    assert voice["gain"][1] <= voice["gain"][0] <= voice["gain"][2]
    assert f"gain {voice['gain'][0]:+.2f}, specificity" in result.stdout
    assert voice["n_prompts"] == 8


def test_a_voice_of_ones_own_is_refused_before_a_model_is_loaded(own_voice: Path) -> None:
    result = pyemo("-m", "no-such-model", own_voice, "--judge", "voice")
    assert result.exit_code == 1
    assert "'pirate' does not say its emotion" in result.stderr
    assert "pyemo sweep --cvec FILE --judge none" in result.stderr
    assert "recommends the strength 0.0181; " in result.stderr
