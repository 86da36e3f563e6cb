"""Whether a device predicts what another did: records a reference, or compares with one."""

from __future__ import annotations

from pyemo.check import reference as references
from pyemo.check.readings import Findings
from pyemo.check.subject import Subject
from pyemo.engine.engine import Engine
from pyemo.texts.sources import prompts


def add_recording(findings: Findings, subject: Subject, engine: Engine, path: str) -> None:
    """Write this device's predictions to ``path``."""
    recording = references.record(
        engine, prompts("selection")[:4], vector=subject.vector, strength=subject.strength
    )
    recording.save(path)
    findings.remarks.append(f"Recorded {recording.n_tokens} predictions to {path}")


def add_agreement(
    findings: Findings, subject: Subject, engine: Engine, recorded: references.Reference
) -> references.Agreement:
    """Force the recorded tokens through the model here; return how far its predictions agree.

    Raises:
        InputError: recorded on another model, with another vector, or by another version.
    """
    found = references.compare(recorded, engine, vector=subject.vector)
    where = f"{found.recorded.cpu}, {found.recorded.n_threads} threads"
    same = "the same file" if found.same_file else "another file of the same weights"
    findings.add(
        "top1",
        "agreement, top 1",
        found.top1,
        limit_name="min_top1",
        limit=references.MIN_TOP1,
        note=f"{found.n_tokens} tokens of {same}, recorded on {where}",
    )
    findings.add(
        "mean_kl",
        "agreement, KL",
        found.mean_kl,
        "nats",
        "max_kl",
        limit=references.MAX_KL,
        note="mean over the tokens",
    )
    return found
