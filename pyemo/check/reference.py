"""What a model predicted on another device, and how far this one agrees: a recorded reference.

The recorder writes tokens greedily and keeps, at each, the likeliest next tokens with their
log-probabilities. Elsewhere the same tokens are forced through the model one at a time, so that one
near tie that falls the other way does not end the comparison. Owns the file and the comparison;
knows nothing of budgets.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyemo.engine.engine import Engine
from pyemo.engine.model import LLAMA_CPP_PYTHON
from pyemo.engine.mood import OFF
from pyemo.engine.sampling import GREEDY
from pyemo.engine.sequence import Sequence as TokenSequence
from pyemo.engine.steering import Steering
from pyemo.errors import InputError
from pyemo.files.inputs import read_input
from pyemo.files.targets import checked_target, unless_it_begins, write_whole
from pyemo.vectors.control_vector import ControlVector

FORMAT = "pyemo.check.reference"
VERSION = 1

_KIND = "a reference"
_NO_REFERENCE = unless_it_begins(
    rb'\s*\{\s*"format"\s*:\s*"pyemo\.check\.reference"', "is not a reference"
)

N_TOP = 64
"""Next tokens kept at each position; the others are one remainder."""

MIN_TOP1 = 0.9
MAX_KL = 0.02
"""Other threads and kernels stay within these, another quantization does not.

docs/measurements/device.md has the numbers.
"""


@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """One prompt's tokens and what was predicted at each of the reply's.

    Attributes:
        tokens: prompt and reply; the last one is predicted and not forced.
        n_prompt: tokens of the prompt.
        is_steered: whether the vector acted.
        top: int32 (n_reply, N_TOP), the likeliest next tokens, the likeliest first.
        logprobs: float32 (n_reply, N_TOP), their natural log-probabilities.
    """

    tokens: tuple[int, ...]
    n_prompt: int
    is_steered: bool
    top: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """Where a reference was recorded, or is compared: what must agree, and what may differ."""

    model: str
    file_sha256: str
    weights_fingerprint: str
    n_vocab: int
    vector_sha256: str  # of the directions; "" for none
    strength: float
    n_threads: int
    cpu: str
    pyemo: str
    llama_cpp_python: str


@dataclass(frozen=True, eq=False)
class Reference:
    """A recording, see the module."""

    source: Source
    runs: tuple[ReferenceRun, ...]

    @property
    def n_tokens(self) -> int:
        """Predictions in all."""
        return sum(len(run.top) for run in self.runs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            InputError: what is there is no reference, or the disk refuses.
        """
        content = {
            "format": FORMAT,
            "version": VERSION,
            "source": asdict(self.source),
            "runs": [
                {
                    "tokens": run.tokens,
                    "n_prompt": run.n_prompt,
                    "is_steered": run.is_steered,
                    "top": run.top.tolist(),
                    # five decimals: a tenth of what float32 rounding changes in a logit
                    "logprobs": np.round(run.logprobs.astype(np.float64), 5).tolist(),
                }
                for run in self.runs
            ],
        }
        data = json.dumps(content, separators=(",", ":")).encode()
        write_whole(path, data, _KIND, _NO_REFERENCE)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reference:
        """Return the recording in a file.

        Raises:
            InputError: not such a file, damaged, or of another version.
        """
        where = os.fspath(path)
        data = read_input(path, "the reference", "make one with `pyemo check --record FILE`")
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"the reference {where!r} is not JSON: {error}; record it anew with `pyemo check "
                "--record FILE`"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(
                f"{where!r} is no reference; make one with `pyemo check --record FILE`"
            )
        if content.get("version") != VERSION:
            raise InputError(
                f"the reference {where!r} has version {content.get('version')!r}, this "
                f"pyemo reads {VERSION}; record it anew with `pyemo check --record FILE`"
            )
        try:
            source = _source(content["source"])
            runs = tuple(_run(run, source.n_vocab) for run in content["runs"])
            if not runs:
                raise ValueError("no runs")
            return cls(source, runs)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"the reference {where!r} is damaged ({error}); record it anew"
            ) from error


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise unless a reference may be written to ``path``; for before the work.

    Raises:
        InputError: what is there is no reference, or the folder refuses files.
    """
    checked_target(path, _KIND, _NO_REFERENCE)


@dataclass(frozen=True)
class Agreement:
    """How far a model here predicts what was recorded there.

    Attributes:
        top1: share of positions with the same likeliest next token.
        mean_kl: mean Kullback-Leibler divergence of the recorded prediction from the one here, in
            nats, over the recorded tokens and the remainder; never more than over all tokens.
        same_file: the model file is the recorded one, byte for byte.
    """

    top1: float
    mean_kl: float
    n_tokens: int
    same_file: bool
    recorded: Source
    here: Source


def record(
    engine: Engine,
    prompts: Sequence[str],
    *,
    vector: ControlVector | None = None,
    strength: float = 0.0,
    n_tokens: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> Reference:
    """Record replies to ``prompts``, unsteered, and steered where a vector is given.

    Args:
        prompts: in the model's chat template, or to be continued where it has none.
        n_tokens: of each reply; an end of the text does not end it.
        on_progress: called with the tokens computed since the last call.
    """
    moods = [OFF] if vector is None else [OFF, Steering({vector: strength})]
    runs = []
    for mood in moods:
        for prompt in prompts:
            with engine.sequence(prompt, steering=mood, sampler=GREEDY) as sequence:
                runs.append(_record(sequence, n_tokens, bool(mood.terms)))
            if on_progress is not None:
                on_progress(n_tokens)
    return Reference(source_of(engine, vector, strength), tuple(runs))


def compare(
    reference: Reference,
    engine: Engine,
    *,
    vector: ControlVector | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Agreement:
    """Return how far ``engine``'s model agrees with ``reference``.

    Args:
        vector: the one it was recorded with, None where it was recorded without.
    Raises:
        InputError: it was recorded with other weights, another vocabulary or another vector.
    """
    recorded = reference.source
    here = source_of(engine, vector, recorded.strength)
    _check_same(recorded, here)
    mood = OFF if vector is None else Steering({vector: recorded.strength})
    n_same, divergence = 0, 0.0
    for run in reference.runs:
        prompt, reply = run.tokens[: run.n_prompt], run.tokens[run.n_prompt :]
        steering = mood if run.is_steered else OFF
        with engine.sequence(list(prompt), steering=steering) as sequence:
            for i, token in enumerate(reply):
                logprobs = _log_softmax(sequence.logits())
                n_same += int(logprobs.argmax() == run.top[i, 0])
                divergence += _divergence(run.logprobs[i], logprobs[run.top[i]])
                if i + 1 < len(reply):
                    sequence.append([token], is_reply=True)
        if on_progress is not None:
            on_progress(len(reply))
    n = reference.n_tokens
    same_file = recorded.file_sha256 == here.file_sha256
    return Agreement(n_same / n, divergence / n, n, same_file, recorded, here)


def source_of(engine: Engine, vector: ControlVector | None, strength: float) -> Source:
    """Return what identifies the model, the vector and the machine at hand."""
    import pyemo

    model = engine.model
    return Source(
        model=model.name,
        file_sha256=model.file_sha256,
        weights_fingerprint=model.weights_fingerprint,
        n_vocab=model.n_vocab,
        vector_sha256="" if vector is None else directions_sha256(vector),
        strength=strength if vector is not None else 0.0,
        n_threads=engine.n_threads,
        cpu=cpu_name(),
        pyemo=pyemo.__version__,
        llama_cpp_python=LLAMA_CPP_PYTHON,
    )


def directions_sha256(vector: ControlVector) -> str:
    """Return the SHA-256 of a vector's layers and numbers, whatever else its file says."""
    import hashlib

    digest = hashlib.sha256()
    for layer in vector.layers:
        digest.update(layer.to_bytes(4, "little"))
        digest.update(np.ascontiguousarray(vector.directions[layer], "<f4").tobytes())
    return digest.hexdigest()


def cpu_name() -> str:
    """Return what the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _record(sequence: TokenSequence, n_tokens: int, is_steered: bool) -> ReferenceRun:
    n_prompt = sequence.n_tokens
    top = np.empty((n_tokens, N_TOP), np.int32)
    kept = np.empty((n_tokens, N_TOP), np.float32)
    for i in range(n_tokens):
        logprobs = _log_softmax(sequence.logits())
        # by falling log-probability, equal ones by id: the first is argmax
        top[i] = np.lexsort((np.arange(len(logprobs)), -logprobs))[:N_TOP]
        kept[i] = logprobs[top[i]]
        sequence.append([int(top[i, 0])], is_reply=True)
    return ReferenceRun(tuple(sequence.tokens), n_prompt, is_steered, top, kept)


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max()
    return np.asarray(wide - np.log(np.exp(wide).sum()))


def _divergence(recorded: npt.NDArray[np.float32], here: npt.NDArray[np.float64]) -> float:
    """Return KL(recorded || here) over the kept tokens and the remainder, in nats."""
    p = np.exp(recorded.astype(np.float64))
    q = np.exp(here)
    rest_p, rest_q = max(1e-12, 1.0 - p.sum()), max(1e-12, 1.0 - q.sum())
    kl = float((p * (recorded - here)).sum() + rest_p * np.log(rest_p / rest_q))
    return max(0.0, kl)


def _check_same(recorded: Source, here: Source) -> None:
    if (recorded.weights_fingerprint, recorded.n_vocab) != (here.weights_fingerprint, here.n_vocab):
        raise InputError(
            f"the reference was recorded with {recorded.model!r}, whose weights are not those of "
            f"{here.model!r}; check the model it was recorded with, or record one for this model"
        )
    if recorded.vector_sha256 != here.vector_sha256:
        was = "with another vector" if recorded.vector_sha256 else "without a vector"
        if recorded.vector_sha256 and not here.vector_sha256:
            was = "with a vector"
        raise InputError(
            f"the reference was recorded {was}; give the same --cvec as when it was recorded"
        )


def _source(content: object) -> Source:
    if not isinstance(content, dict):
        raise TypeError("a source that is no object")
    kinds = {"n_vocab": (int,), "n_threads": (int,), "strength": (int, float)}
    for name, value in content.items():
        if type(value) not in kinds.get(name, (str,)):
            raise TypeError(f"{name} of type {type(value).__name__}")
    source = Source(**content)
    if not math.isfinite(source.strength) or not 0 < source.n_vocab < 1 << 31:
        raise ValueError(f"strength {source.strength}, n_vocab {source.n_vocab}")
    return source


def _run(content: dict[str, Any], n_vocab: int) -> ReferenceRun:
    tokens, n_prompt = tuple(content["tokens"]), content["n_prompt"]
    for number in (*tokens, n_prompt):
        if type(number) is not int:
            raise TypeError(f"a token or count of type {type(number).__name__}")
    top = np.array(content["top"])
    if top.dtype.kind != "i":
        raise TypeError("predicted tokens that are not whole numbers")
    logprobs = np.array(content["logprobs"], np.float32)
    if not tokens or min(tokens) < 0 or max(tokens) >= n_vocab:
        raise ValueError(f"tokens outside the vocabulary of {n_vocab}")
    n_reply = len(tokens) - n_prompt
    if n_prompt < 1 or n_reply < 1:
        raise ValueError(f"{len(tokens)} tokens of which {n_prompt} are the prompt")
    if top.shape != logprobs.shape or top.ndim != 2 or len(top) != n_reply or top.size == 0:
        raise ValueError(f"predictions of shape {top.shape} for {n_reply} tokens")
    if top.min() < 0 or top.max() >= n_vocab:
        raise ValueError(f"predicted tokens outside the vocabulary of {n_vocab}")
    if not np.isfinite(logprobs).all() or logprobs.max() > 1e-3:
        raise ValueError("predictions that are no log-probabilities")
    return ReferenceRun(
        tokens, n_prompt, bool(content["is_steered"]), top.astype(np.int32), logprobs
    )
