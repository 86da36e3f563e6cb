"""Mixed work on one engine for as long as you like: is every result right, is anything left?

    python bench/soak.py --seconds 1800 [--output FILE]

A scheduler serves clients that ask for plain, guarded, steered, cancelled and impossible replies,
while other threads chat, score, read and fork on the same engine. The model is a tiny one, so that
an hour is hundreds of thousands of calls. Each result is compared with what a quiet engine gave
before. A greedy reply may differ from it only where two tokens were as likely as each other:
batches of another shape round otherwise (docs/determinism.md). Exits with 1 for a wrong result, an
error that was not to come, or memory, cells, descriptors or threads that are not given back.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_models import build_tiny

from pyemo import Chat, ControlVector, Engine, Model, SamplerParams, Steering
from pyemo.engine.row import ReplyLimits
from pyemo.engine.scheduler import Scheduler
from pyemo.engine.tickets import Request, Ticket
from pyemo.errors import ContextFullError, DecodeAbortedError, PyemoError, SequenceLimitError
from pyemo.guard import Guard

N_CTX, N_SEQ_MAX, N_CLIENTS = 2048, 10, 4
N_TOKENS = 24
GREEDY = SamplerParams(temperature=0)
TIE = 1e-3
"""Two tokens whose logits differ by less of a standard deviation are as likely as each other."""
SCORE_ERROR = 1e-3
"""Nats by which a score may differ."""
KINDS = {"plain", "guarded", "cancelled", "impossible", "chat", "score", "fork"}
PATIENCE_S = 120
"""Seconds beyond those asked for, at most, until each kind of work was done once."""

GROWTH = 1.05
"""Memory of the last quarter over that of the second, at most; the first is warming up."""
SLACK_BYTES = 8 << 20
PROMPTS = ("the happy story", "a sad dog", "you said that", "the", "a happy story of the sad dog")


@dataclass
class Reference:
    """What a quiet engine gives for one prompt under one mood.

    Attributes:
        prompt, tokens: ids of the prompt and of the greedy reply.
        margins: of each token of the reply, its lead over the second in standard deviations.
        score: log-probabilities of the reply.
    """

    prompt: list[int]
    mood: Steering
    tokens: list[int]
    margins: list[float]
    score: npt.NDArray[np.float32]


@dataclass
class Sample:
    """The process at one moment."""

    seconds: float
    rss_bytes: int
    n_descriptors: int
    n_threads: int
    n_free_cells: int


@dataclass
class Report:
    """What the run came to.

    Attributes:
        done: calls that gave what they should, by kind.
        refused: calls that were refused for want of room, by kind.
        ties: replies that differ where two tokens were as likely as each other.
        wrong: what should not have been, in words; the first hundred.
    """

    seconds: float = 0.0
    done: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    ties: int = 0
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def note(self, kind: str, *, was_refused: bool = False) -> None:
        """Count a call."""
        with self._lock:
            counts = self.refused if was_refused else self.done
            counts[kind] = counts.get(kind, 0) + 1

    def blame(self, what: str) -> None:
        """Note what should not have been."""
        with self._lock:
            self.wrong = [*self.wrong, what][:100]


class Soak:
    """An engine, its scheduler, and the threads that use them."""

    def __init__(self, model: Model, seed: int) -> None:
        self.model = model
        self.report = Report()
        self.ends = threading.Event()
        self.seed = seed
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((2, model.n_layer, model.n_embd)).astype(np.float32)
        warm, cold, huge = (
            ControlVector(dict(enumerate(row)), name=name)
            for name, row in (("warm", rows[0]), ("cold", rows[1]), ("huge", rows[0] * 1e18))
        )
        self.moods = [Steering(), Steering({warm: 0.3}), Steering({warm: -0.2, cold: 0.2})]
        self.overflowing = Steering({huge: 1e6})
        self.references = self._references()
        self.engine = Engine(
            model, n_ctx=N_CTX, n_seq_max=N_SEQ_MAX, n_threads=1, kv_type="f32", n_outputs_max=16
        )
        self.scheduler = Scheduler(self.engine, max_queue=2 * N_CLIENTS)

    def _references(self) -> list[Reference]:
        found = []
        with Engine(self.model, n_ctx=256, n_threads=1, kv_type="f32") as quiet:
            for text in PROMPTS:
                for mood in self.moods:
                    prompt = quiet.model.tokenize(text, add_special=True)
                    tokens, margins = [], []
                    with quiet.sequence(prompt, steering=mood) as sequence:
                        for _ in range(N_TOKENS):
                            logits = sequence.logits()
                            second, first = np.sort(logits)[-2:]
                            tokens.append(int(logits.argmax()))
                            margins.append(float((first - second) / logits.std()))
                            sequence.append([tokens[-1]], is_reply=True)
                    score = quiet.score(tokens, given=prompt, steering=mood).logprobs
                    found.append(Reference(prompt, mood, tokens, margins, score))
        return found

    # --- checks ---

    def check(self, kind: str, reference: Reference, tokens: list[int]) -> None:
        """Compare a reply with what a quiet engine gave, as far as it came."""
        pairs = zip(tokens, reference.tokens, strict=False)
        differs = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if differs is None:
            self.report.note(kind)
        elif reference.margins[differs] < TIE:
            self.report.ties += 1
        else:
            self.report.blame(f"{kind}: token {differs} is {tokens[differs]}, another than alone")

    # --- the threads' work ---

    def client(self, dice: random.Random) -> None:
        """One request to the scheduler, of any kind."""
        kind = dice.choice(("plain", "plain", "guarded", "steered", "cancelled", "impossible"))
        reference = dice.choice(self.references)
        mood = self.overflowing if kind == "impossible" else reference.mood
        request = Request(
            reference.prompt,
            ReplyLimits(N_TOKENS),
            steering=mood,
            sampler=GREEDY,
            uses_cache=dice.random() < 0.7,
            **({"make_reply": Guard().begin} if kind == "guarded" else {}),
        )
        ticket = self.scheduler.submit(request)
        if kind == "cancelled":
            for n, _ in enumerate(ticket):
                if n == 3:
                    ticket.cancel()
        if kind == "steered":
            self._steer(ticket, dice)
        try:
            ticket.wait(60)
        except DecodeAbortedError:
            if kind != "impossible":
                raise
        if kind in ("plain", "cancelled"):
            self.check(kind, reference, [token.id for token in ticket.tokens])
        elif kind == "impossible" and ticket.stop_reason != "error":
            self.report.blame(f"impossible: an overflow ended as {ticket.stop_reason}")
        else:
            self.report.note(kind)

    def _steer(self, ticket: Ticket, dice: random.Random) -> None:
        for n, _ in enumerate(ticket):
            if n == 3 and ticket.stop_reason is None:
                try:
                    ticket.steer(dice.choice(self.moods))
                except PyemoError:
                    if ticket.stop_reason is None:  # else it has ended meanwhile
                        raise

    def chat(self, dice: random.Random) -> None:
        """Three turns of a conversation whose mood changes."""
        with Chat(self.engine, sampler=GREEDY, max_tokens=8) as chat:
            for _ in range(3):
                reply = chat.say(dice.choice(PROMPTS))
                for _token in reply:
                    pass
                chat.steering = dice.choice(self.moods)
            if dice.random() < 0.3:
                chat.refresh()
        self.report.note("chat")

    def score(self, dice: random.Random) -> None:
        """How likely a reply is that is known."""
        reference = dice.choice(self.references)
        found = self.engine.score(
            reference.tokens, given=reference.prompt, steering=reference.mood
        ).logprobs
        worst = float(np.abs(found - reference.score).max())
        if worst > SCORE_ERROR:
            self.report.blame(f"score: {worst:.2e} nats from what it is alone")
        else:
            self.report.note("score")

    def fork(self, dice: random.Random) -> None:
        """A sequence, its twins, and the way back."""
        reference = dice.choice(self.references)
        with self.engine.sequence(
            reference.prompt, steering=reference.mood, sampler=GREEDY
        ) as sequence:
            first = [token.id for token in sequence.generate(max_tokens=6)]
            with sequence.fork() as twin:
                self.check("fork", reference, first + [t.id for t in twin.generate(max_tokens=4)])
            sequence.rollback(len(first))
            self.check("rollback", reference, [t.id for t in sequence.generate(max_tokens=6)])

    # --- running ---

    def loop(self, work: Callable[[random.Random], None], number: int) -> None:
        """Do one kind of work until the end."""
        dice = random.Random(f"{self.seed} {number}")
        while not self.ends.is_set():
            try:
                work(dice)
            except (ContextFullError, SequenceLimitError):
                self.report.note(work.__name__, was_refused=True)
                time.sleep(0.002)
            except Exception:  # noqa: BLE001, none is to come
                self.report.blame(f"{work.__name__}: {traceback.format_exc(limit=-3)}")

    def run(self, seconds: float) -> Report:
        """Work for so long and return what came of it."""
        works = [self.client] * N_CLIENTS + [self.chat, self.score, self.fork]
        threads = [
            threading.Thread(target=self.loop, args=(work, n)) for n, work in enumerate(works)
        ]
        n_before = threading.active_count()
        began = time.monotonic()
        for thread in threads:
            thread.start()
        while (passed := time.monotonic() - began) < seconds or self._lacks_kinds(passed - seconds):
            self.ends.wait(min(max(seconds / 60, 0.1), max(seconds - passed, 0.1)))
            self.report.samples.append(self.sample(passed))
        self.ends.set()
        for thread in threads:
            thread.join(120)
            if thread.is_alive():
                self.report.blame("a thread hangs")
        self.scheduler.close()
        gc.collect()
        self.report.seconds = time.monotonic() - began
        self._check_rest(n_before - 1)  # the scheduler's own thread has ended too
        self.engine.close()
        return self.report

    def _lacks_kinds(self, over: float) -> bool:
        """Whether a slow machine has not come to each kind of work, and may go on a little."""
        return over < PATIENCE_S and not self.report.done.keys() >= KINDS

    def sample(self, passed: float) -> Sample:
        """Look at the process."""
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return Sample(
            passed,
            resident,
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            self.engine.native.n_free_cells,
        )

    def _check_rest(self, n_threads: int) -> None:
        blame, samples = self.report.blame, self.report.samples
        if self.engine.n_free_sequences != N_SEQ_MAX:
            blame(f"{N_SEQ_MAX - self.engine.n_free_sequences} sequences are left over")
        if self.engine.native.n_free_cells != self.engine.n_ctx:
            blame(f"{self.engine.n_ctx - self.engine.native.n_free_cells} cells are left over")
        if threading.active_count() > n_threads:
            blame(f"{threading.active_count() - n_threads} threads are left over")
        quarter = max(1, len(samples) // 4)
        early, late = (
            np.mean([sample.rss_bytes for sample in part])
            for part in (samples[quarter : 2 * quarter] or samples, samples[-quarter:])
        )
        if late > GROWTH * early + SLACK_BYTES:
            blame(f"memory grew from {early / 1e6:.0f} to {late / 1e6:.0f} MB")
        descriptors = [sample.n_descriptors for sample in samples]
        if descriptors and max(descriptors[-quarter:]) > max(descriptors[:quarter]):
            blame(f"descriptors grew from {descriptors[0]} to {descriptors[-1]}")


def main() -> None:
    """Run the command line above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write all that was seen here, as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Model.load(build_tiny("llama", Path(folder) / "llama.gguf").path)
        report = Soak(model, given.seed).run(given.seconds)
    first, last = report.samples[0], report.samples[-1]
    print(f"{sum(report.done.values()):,} calls in {report.seconds:.0f} s: {report.done}")
    print(f"refused for want of room: {report.refused}; ties: {report.ties}")
    print(
        f"memory {first.rss_bytes / 1e6:.0f} to {last.rss_bytes / 1e6:.0f} MB, descriptors "
        f"{first.n_descriptors} to {last.n_descriptors}; wrong: {len(report.wrong)}"
    )
    for line in report.wrong:
        print(line, file=sys.stderr)
    if given.output:
        given.output.write_text(json.dumps(asdict(report), indent=1) + "\n")
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
