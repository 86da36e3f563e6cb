"""What a device check is about: the plan, and its model and vector once they are loaded.

Owns the strength that is checked and how engines are opened. Measures nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from pyemo.check.budget import Budget
from pyemo.choices import DEFAULT_KV_TYPE, KVType
from pyemo.engine.engine import Engine
from pyemo.engine.model import Model
from pyemo.engine.mood import OFF
from pyemo.engine.steering import Steering
from pyemo.engine.threads import Threads
from pyemo.files.catalog import vector_path
from pyemo.vectors.control_vector import ControlVector

N_LONG = 256
PROMPT = "Write a short message to your neighbour about the noise last night."


@dataclass(frozen=True)
class CheckPlan:
    """What to check.

    Attributes:
        model: catalog name, path or repository.
        vector: a bundled vector's name or a file; None to check the model unsteered.
        strength: None for the one that the vector recommends, see
            :meth:`pyemo.ControlVector.recommended`.
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
    kv_type: KVType = DEFAULT_KV_TYPE
    judge: str = "minilm"
    n_long: int = N_LONG
    reference: str | None = None
    record: str | None = None


@dataclass(frozen=True)
class Subject:
    """The model under check, with the vector that steers it.

    Attributes:
        vector: None to check the model unsteered; ``mood`` is empty then.
        strength_note: where the strength comes from.
    """

    plan: CheckPlan
    model: Model
    vector: ControlVector | None
    strength: float
    strength_note: str
    mood: Steering

    @classmethod
    def load(cls, plan: CheckPlan, model: Model) -> Subject:
        """Load the plan's vector for a model that is loaded.

        Raises:
            VectorError: it does not fit the model.
            InputError: it has no default strength, and the plan gives none.
        """
        vector = None if plan.vector is None else ControlVector.load(plan.vector, model)
        strength, note = _strength(plan, vector, model)
        mood = OFF if vector is None else Steering({vector: strength})
        return cls(plan, model, vector, strength, note, mood)

    def engine(self, *, n_ctx: int, n_seq_max: int = 1, n_outputs: int = 1) -> Engine:
        """Open an engine of its own, see :func:`open_engine`."""
        return open_engine(
            self.plan, self.model, n_ctx=n_ctx, n_seq_max=n_seq_max, n_outputs=n_outputs
        )


def open_engine(
    plan: CheckPlan, model: Model, *, n_ctx: int, n_seq_max: int = 1, n_outputs: int = 1
) -> Engine:
    """Open an engine as `pyemo run` does, with the plan's threads and KV cache."""
    return Engine(
        model,
        n_ctx=n_ctx,
        n_batch=min(256, n_ctx),
        n_seq_max=n_seq_max,
        n_outputs_max=max(n_outputs, n_seq_max),
        n_threads=plan.n_threads,
        kv_type=plan.kv_type,
    )


def require_vector(name: str, model_name: str) -> None:
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
    found = vector.recommended(model)
    where = {
        "trained": "which its training recommends; not calibrated on this file (`pyemo calibrate`)",
        "default": "the default: not calibrated on this file (`pyemo calibrate`)",
    }.get(found.source, "")
    if found.calibration is not None:
        low, high = found.calibration.window
        where = f"calibrated ({low:g} to {high:g})"
    return found.strength, f"strength {found.strength:g}, {where}"
