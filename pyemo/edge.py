"""The device check: will this file with this vector run here, fast, small and coherently enough?

Owns what is measured and how, stage by stage, and the report. Limits are ``budget``'s, printing is
the command's. Speeds are those of this moment on this machine; a busy neighbour shows in them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pyemo import reference as references
from pyemo.batches import n_ctx_for
from pyemo.budget import Budget
from pyemo.catalog import resolve_model, vector_path
from pyemo.control_vector import ControlVector
from pyemo.device_memory import MemoryNeed, memory_need, require_room, resident_bytes
from pyemo.engine import Engine, KVType
from pyemo.errors import InputError, MissingExtraError, ModelError
from pyemo.extract.sources import neutral_texts, prompts
from pyemo.model import Model
from pyemo.quantize import tensor_types
from pyemo.sampling import SamplerParams
from pyemo.sequence import OFF, step_many
from pyemo.sequence import Sequence as TokenSequence
from pyemo.steering import Steering
from pyemo.threads import Threads, available_cores
from pyemo.trials import Trials

Value: TypeAlias = "float | str | bool | None"
Judge: TypeAlias = Any  # pyemo.judges.Judge; that module is imported where a judge is wanted

DEFAULT_STRENGTH = 0.02
N_DECODE, N_ROUNDS, N_SEQUENCES, N_LONG = 32, 3, 8, 256
PROMPT = "Write a short message to your neighbour about the noise last night."

_N_PROMPT_TOKENS = 256
_SEED = 7
_GREEDY = SamplerParams(temperature=0)
# ggml types that llama.cpp multiplies row by row on x86, without a kernel for several rows at once.
_SLOW_ON_X86 = frozenset({"q4_1", "q5_0", "q5_1"})


@dataclass(frozen=True)
class CheckPlan:
    """What to check.

    Attributes:
        model: catalog name, path or repository.
        vector: a bundled vector's name or a file; None to check the model unsteered.
        strength: None for the vector's calibration on this file, else 0.02.
        n_ctx, n_threads, kv_type: as for :class:`pyemo.Engine`.
        judge: for the emotion, see :func:`pyemo.judges.load_judge`; "" for none.
        n_long: tokens of the longer run.
        reference: a file to compare with; ``record`` one to write.
    """

    model: str
    vector: str | None = None
    strength: float | None = None
    budget: Budget = field(default_factory=Budget)
    n_ctx: int = 512
    n_threads: Threads = None
    kv_type: KVType = "f16"
    judge: str = "minilm"
    n_long: int = N_LONG
    reference: str | None = None
    record: str | None = None


@dataclass(frozen=True)
class Reading:
    """One thing that was measured.

    Attributes:
        name: its key in reports, such as ``"tokens_per_s"``.
        value: None is a gap, and ``note`` says why.
        unit: "tokens/s", "s", "bytes", "nats" or "".
        limit: from the budget, None without one.
        limit_name: the budget's key for it, "" where it has none.
        is_met: None without a limit; a limit on a gap is not met.
        note: how it was measured, or what it consists of.
    """

    name: str
    title: str
    value: Value
    unit: str = ""
    limit: Value = None
    limit_name: str = ""
    is_met: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class DeviceReport:
    """The outcome of a check.

    Attributes:
        facts: machine, versions, model and vector, as (title, text).
        remarks: sentences on what to know or to do, such as a faster format.
        agreement: with the reference, None without one.
        spent_s: seconds the check took.
    """

    model: str
    facts: tuple[tuple[str, str], ...]
    readings: tuple[Reading, ...]
    remarks: tuple[str, ...]
    agreement: references.Agreement | None
    spent_s: float

    @property
    def failures(self) -> tuple[Reading, ...]:
        """Readings whose limit is not met."""
        return tuple(reading for reading in self.readings if reading.is_met is False)

    @property
    def is_passed(self) -> bool:
        """Whether every limit is met; a check without limits passes."""
        return not self.failures


def check(plan: CheckPlan, *, on_stage: Callable[[str], None] | None = None) -> DeviceReport:
    """Measure what ``plan`` asks for, and hold it against its budget.

    Args:
        on_stage: called with what is done next; there are :data:`N_STAGES` at most.
    Raises:
        ModelError: no such model, damaged, or larger than the memory that is available (said before
            it is loaded).
        VectorError: the vector does not fit the model.
        InputError: a reference of another model, vector or version, or a value outside its range.
    """
    began = time.perf_counter()
    run = _Check(plan, on_stage or (lambda _title: None))
    run.measure()
    return DeviceReport(
        run.model.name,
        tuple(run.facts),
        tuple(run.readings),
        tuple(run.remarks),
        run.agreement,
        time.perf_counter() - began,
    )


STAGES = (
    "starting `pyemo run`",
    "loading",
    "reading a prompt, decoding",
    "decoding several sequences",
    "repeating a text",
    "a longer run",
    "the text's regime",
    "the reference",
)
N_STAGES = len(STAGES)


class _Check:
    """One check under way: stages in the order of :data:`STAGES`, each adds readings."""

    def __init__(self, plan: CheckPlan, on_stage: Callable[[str], None]) -> None:
        self.plan = plan
        self.facts: list[tuple[str, str]] = []
        self.readings: list[Reading] = []
        self.remarks: list[str] = []
        self.agreement: references.Agreement | None = None
        self._on_stage = on_stage
        # What can be refused is refused before anything is run.
        self._reference = references.Reference.load(plan.reference) if plan.reference else None
        resolved = resolve_model(plan.model)
        self._path = resolved.path
        if plan.vector is not None:
            find_vector(plan.vector, resolved.name)
        self._need = memory_need(self._path, n_ctx=plan.n_ctx, kv_type=plan.kv_type)
        require_room(self._path, self._need)
        self._idle_bytes = resident_bytes()

    def measure(self) -> None:
        """Run all stages."""
        self._on_stage(STAGES[0])
        command = self._command()
        self._on_stage(STAGES[1])
        with self._open() as engine:
            self._add_command(command)
            self._on_stage(STAGES[2])
            self._speed(engine)
        self._on_stage(STAGES[3])
        self._batch()
        self._on_stage(STAGES[4])
        self._same_text()
        self._on_stage(STAGES[5])
        self._long_run()
        self._on_stage(STAGES[6])
        self._regime()
        if self._reference is not None or self.plan.record is not None:
            self._on_stage(STAGES[7])
            self._agree()

    # --- stages ---

    def _command(self) -> list[tuple[float, int | None]]:
        """Return (first output, peak bytes) of `pyemo run`, twice: the first fills the page cache.

        It comes before anything is loaded here: a child's peak counts from its parent's size.
        """
        plan = self.plan
        command = [sys.executable, "-m", "pyemo", "run", "-m", str(self._path), "-n", "48"]
        command += ["--n-ctx", str(plan.n_ctx), "--kv-type", plan.kv_type, "--temperature", "0"]
        if plan.n_threads is not None:
            command += ["--threads", str(plan.n_threads)]
        return [run_once([*command, PROMPT]) for _ in range(2)]

    def _open(self) -> Engine:
        """Load the model and open the engine as `pyemo run` does; find out how the vector fits."""
        plan = self.plan
        begin = time.perf_counter()
        self.model = Model.load(self._path)
        engine = self._engine(n_ctx=plan.n_ctx)
        spent = time.perf_counter() - begin
        self._vector = None if plan.vector is None else ControlVector.load(plan.vector, self.model)
        self._strength, strength_note = _strength(plan, self._vector, self.model)
        self._mood = OFF if self._vector is None else Steering({self._vector: self._strength})
        self._facts(engine, strength_note)
        self._add("load_s", "load", spent, "s", "max_load_s", note="model and engine, in a process")
        return engine

    def _add_command(self, runs: Sequence[tuple[float, int | None]]) -> None:
        first_s = runs[-1][0]
        self._add(
            "first_token_s",
            "first token",
            first_s,
            "s",
            "max_first_token_s",
            note="of `pyemo run`, from its start; files in the page cache",
        )
        peaks = [peak for _, peak in runs if peak is not None]
        peak = max(peaks, default=None)
        note = _memory_note(self._need, self._idle_bytes, peak)
        self._add("peak_memory", "peak memory", peak, "bytes", "max_memory", note=note)

    def _speed(self, engine: Engine) -> None:
        n = min(_N_PROMPT_TOKENS, self.plan.n_ctx - 2)
        tokens = self.model.tokenize(" ".join(neutral_texts()), add_special=True)[:n]
        prompt = [_timed(functools.partial(_read, engine, tokens)) for _ in range(N_ROUNDS)]
        self._add(
            "prompt_tokens_per_s",
            "read a prompt",
            len(tokens) / statistics.median(prompt),
            "tokens/s",
            "min_prompt_tokens_per_s",
            note=f"{len(tokens)} tokens",
        )
        spent: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(N_ROUNDS):  # in turns, so that both see the same machine
            for is_steered in (False, True) if self._mood.terms else (False,):
                mood = self._mood if is_steered else OFF
                spent[is_steered].append(_decode_s(engine, mood, N_DECODE))
        plain = N_DECODE / statistics.median(spent[False])
        has_vector = bool(self._mood.terms)
        self._add(
            "unsteered_tokens_per_s",
            "decode, unsteered",
            plain,
            "tokens/s",
            "" if has_vector else "min_tokens_per_s",
        )
        if has_vector:
            steered = N_DECODE / statistics.median(spent[True])
            note = f"{len(self._vector.layers) if self._vector else 0} layers"
            self._add(
                "tokens_per_s",
                "decode, steered",
                steered,
                "tokens/s",
                "min_tokens_per_s",
                note=note,
            )

    def _batch(self) -> None:
        n_tokens = 16
        prompt = self.model.prompt_tokens(PROMPT)
        n_ctx = N_SEQUENCES * (len(prompt) + n_tokens + 4)
        with self._engine(n_ctx=n_ctx, n_seq_max=N_SEQUENCES) as engine:
            sequences = [
                engine.sequence(prompt, steering=self._mood, sampler=SamplerParams(seed=i))
                for i in range(N_SEQUENCES)
            ]
            step_many(sequences)
            spent = _timed(lambda: [step_many(sequences) for _ in range(n_tokens)])
        self._add(
            "batch_tokens_per_s",
            f"decode, {N_SEQUENCES} sequences",
            N_SEQUENCES * n_tokens / spent,
            "tokens/s",
            "min_batch_tokens_per_s",
            note="all together",
        )

    def _same_text(self) -> None:
        """Write one sampled text twice, each with a new engine."""
        texts = []
        for _ in range(2):
            with self._engine(n_ctx=self.plan.n_ctx) as engine:
                reply = engine.generate(
                    PROMPT,
                    steering=self._mood,
                    max_tokens=N_DECODE,
                    sampler=SamplerParams(seed=_SEED),
                )
                texts.append([token.id for token in reply])
        self._add(
            "same_text",
            "same seed, same text",
            texts[0] == texts[1],
            limit_name="same_text",
            note=f"{len(texts[0])} sampled tokens, two engines",
        )

    def _long_run(self) -> None:
        n = max(8, self.plan.n_long // 4 * 4)
        prompt = self.model.prompt_tokens(PROMPT)
        n_ctx = len(prompt) + n + 4
        quarters = []
        with self._engine(n_ctx=n_ctx) as engine, engine.sequence(prompt, steering=self._mood) as s:
            s.step()
            before = resident_bytes()
            quarters = [_timed(functools.partial(_steps, s, n // 4)) for _ in range(4)]
            after = resident_bytes()
        grown = "" if before is None or after is None else f", {(after - before) / 1e6:+.1f} MB"
        first, last = (n // 4 / quarter for quarter in (quarters[0], quarters[-1]))
        self._add(
            "slowdown",
            f"slowdown over {n} tokens",
            1 - last / first,
            limit_name="max_slowdown",
            note=f"{first:.0f} tokens/s in the first quarter, {last:.0f} in the last{grown}",
        )

    def _regime(self) -> None:
        vector = self._vector
        if vector is None:
            self._gap("regime", "regime", "regime", "no vector was given")
            return
        judge, why_not = _judge(self.plan.judge)
        if judge is None:
            self.remarks.append(f"The text's emotion is not judged: {why_not}")
        texts = prompts("selection")
        tokens = [self.model.prompt_tokens(text) for text in texts]
        n_ctx = n_ctx_for(tokens, 48, N_SEQUENCES)
        with self._engine(n_ctx=n_ctx, n_seq_max=N_SEQUENCES, n_outputs=32) as engine:
            trials = Trials(engine, texts, max_tokens=48, judge=judge, n_rows=N_SEQUENCES)
            (trial,) = trials.run([(vector, self._strength)])[0]
        report = trial.report
        self._add(
            "regime",
            "regime",
            report.regime.value,
            limit_name="regime",
            note=f"at strength {self._strength:g}: {report.coherent_share:.0%} of {report.n_texts} "
            f"texts coherent, perplexity ratio {report.ratio.value:.2f}",
        )
        if trial.effect is not None and trial.noise is not None:
            self._add(
                "judged_effect",
                "judged emotion",
                trial.effect - trial.noise,
                note=f"{self.plan.judge}: {trial.effect:+.3f} by the vector, {trial.noise:+.3f} by "
                "random directions of equal norm",
            )

    def _agree(self) -> None:
        with self._engine(n_ctx=self.plan.n_ctx) as engine:
            if self.plan.record is not None:
                recording = references.record(
                    engine,
                    prompts("selection")[:4],
                    vector=self._vector,
                    strength=self._strength,
                )
                recording.save(self.plan.record)
                self.remarks.append(
                    f"Recorded {recording.n_tokens} predictions to {self.plan.record}"
                )
            if self._reference is None:
                return
            found = references.compare(self._reference, engine, vector=self._vector)
        self.agreement = found
        where = f"{found.recorded.cpu}, {found.recorded.n_threads} threads"
        same = "the same file" if found.same_file else "another file of the same weights"
        self._add(
            "top1",
            "agreement, top 1",
            found.top1,
            limit_name="min_top1",
            limit=references.MIN_TOP1,
            note=f"{found.n_tokens} tokens of {same}, recorded on {where}",
        )
        self._add(
            "mean_kl",
            "agreement, KL",
            found.mean_kl,
            "nats",
            "max_kl",
            limit=references.MAX_KL,
            note="mean over the tokens",
        )

    # --- help ---

    def _engine(self, *, n_ctx: int, n_seq_max: int = 1, n_outputs: int = 1) -> Engine:
        return Engine(
            self.model,
            n_ctx=n_ctx,
            n_batch=min(256, n_ctx),
            n_seq_max=n_seq_max,
            n_outputs_max=max(n_outputs, n_seq_max),
            n_threads=self.plan.n_threads,
            kv_type=self.plan.kv_type,
        )

    def _facts(self, engine: Engine, strength_note: str) -> None:
        model = self.model
        types = tensor_types(self._path)
        total = sum(part.n_bytes for part in types)
        shares = ", ".join(f"{part.type} {part.n_bytes / total:.0%}" for part in types[:3])
        self.facts += [
            ("machine", f"{references.cpu_name()}, {available_cores()} cores, {platform.system()}"),
            ("threads", engine.threads.reason),
            ("versions", _versions()),
            ("model", f"{model.name}, {total / 1e6:.0f} MB: {shares}"),
            ("context", f"{self.plan.n_ctx} tokens, {self.plan.kv_type} KV cache"),
        ]
        if self._vector is not None:
            fit = self._vector.check(model)
            self.facts.append(("vector", f"{self._vector.name}, {strength_note}. {fit.sentence}"))
        if engine.steering_unsupported:
            self.remarks.append(f"The model cannot be steered: {engine.steering_unsupported}")
        slow = sum(part.n_bytes for part in types if part.type in _SLOW_ON_X86) / total
        if slow > 0.3 and platform.machine().casefold() in ("x86_64", "amd64"):
            self.remarks.append(
                f"{slow:.0%} of the file is in types without fast kernels on this CPU: Q4_0 or "
                "Q8_0 read a prompt several times faster (`pyemo models requantize "
                f"{self.plan.model} Q4_0`, which also says what it costs)"
            )

    def _gap(self, name: str, title: str, limit_name: str, why: str) -> None:
        self._add(name, title, None, limit_name=limit_name, note=why)

    def _add(
        self,
        name: str,
        title: str,
        value: Value,
        unit: str = "",
        limit_name: str = "",
        *,
        limit: Value = None,
        note: str = "",
    ) -> None:
        """Add a reading; its limit is the budget's, else ``limit``."""
        chosen = getattr(self.plan.budget, limit_name) if limit_name else None
        chosen = limit if chosen is None else chosen
        met = None if chosen is None else is_met(limit_name, value, chosen)
        if value is None and not note:
            note = "this system does not show it"
        self.readings.append(Reading(name, title, value, unit, chosen, limit_name, met, note))


def is_met(limit_name: str, value: Value, limit: Value) -> bool:
    """Return whether a value keeps a limit; the limit's name says its direction."""
    if value is None or limit is None:
        return False
    if limit_name.startswith("min_"):
        return float(value) >= float(limit)
    if limit_name.startswith("max_"):
        return float(value) <= float(limit)
    return value == limit or (limit is False and limit_name == "same_text")


def run_once(command: Sequence[str]) -> tuple[float, int | None]:
    """Run a command; return the seconds to its first output, and its peak memory if shown.

    Raises:
        ModelError: it ends with an error; the message is its own.
    """
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        first = child.stdout.read(1)
        spent = time.perf_counter() - begin
        child.stdout.read()
        said = child.stderr.read().decode("utf-8", "replace").strip()
        peak = None
        if hasattr(os, "wait4"):
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if child.returncode != 0 or not first:
        last = said.splitlines()[-1] if said else f"exit code {child.returncode}"
        raise ModelError(f"`pyemo run` failed: {last.removeprefix('Error: ')}")
    return spent, peak


def _memory_note(need: MemoryNeed, idle: int | None, peak: int | None) -> str:
    parts = [("weights", need.weights)]
    if need.kv_cache is not None:
        parts.append(("KV cache", need.kv_cache))
    if idle is not None:
        parts.append(("Python", idle))
    if peak is not None:
        parts.append(("compute and rest", peak - sum(n for _, n in parts)))
    return ", ".join(f"{name} {n / 1e6:.0f} MB" for name, n in parts)


def find_vector(name: str, model_name: str) -> None:
    """Refuse a vector that is neither a readable file nor bundled for the model.

    Raises:
        VectorError: see :meth:`ControlVector.load`.
    """
    if os.path.isfile(os.path.expanduser(name)) or name.endswith(".gguf") or os.sep in name:
        ControlVector.load(name)
    else:
        vector_path(name, model_name)


def _strength(plan: CheckPlan, vector: ControlVector | None, model: Model) -> tuple[float, str]:
    """Return the strength to check, and where it comes from."""
    if vector is None:
        return 0.0, ""
    if plan.strength is not None:
        return plan.strength, f"strength {plan.strength:g} as given"
    found = vector.calibration_for(model.file_sha256)
    if found is not None:
        low, high = found.window
        return found.strength, f"strength {found.strength:g}, calibrated ({low:g} to {high:g})"
    if vector.unit == "raw":
        raise InputError(
            f"the vector {vector.name!r} does not say its unit, so it has no default strength; "
            "give --strength, or rescale it once with `pyemo rescale`"
        )
    return DEFAULT_STRENGTH, (
        f"strength {DEFAULT_STRENGTH:g}, the default: not calibrated on this file (`pyemo "
        "calibrate`)"
    )


def _judge(name: str) -> tuple[Judge | None, str]:
    """Return the judge, or None and why there is none."""
    if not name:
        return None, "no judge was asked for"
    from pyemo.judges import load_judge

    try:
        return load_judge(name), ""
    except MissingExtraError as error:
        return None, str(error)


def _read(engine: Engine, tokens: Sequence[int]) -> None:
    with engine.sequence(list(tokens)) as sequence:
        sequence.logits()


def _decode_s(engine: Engine, mood: Steering, n: int) -> float:
    """Return the seconds that ``n`` tokens take after the first."""
    with engine.sequence(PROMPT, steering=mood, sampler=_GREEDY) as sequence:
        sequence.step()
        return _timed(functools.partial(_steps, sequence, n))


def _steps(sequence: TokenSequence, n: int) -> None:
    for _ in range(n):
        sequence.step()


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _versions() -> str:
    import pyemo

    llama = importlib.metadata.version("llama-cpp-python")
    return (
        f"pyemo {pyemo.__version__}, llama-cpp-python {llama}, Python {platform.python_version()}"
    )
