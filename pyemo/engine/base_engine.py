"""An engine without its sequences: opened, closed, its threads, its lock, its facts."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from pyemo import _core
from pyemo.choices import DEFAULT_KV_TYPE, DEFAULT_MODEL, KV_TYPES, KVType
from pyemo.engine.forks import check_not_forked
from pyemo.engine.memory import require_cache_room
from pyemo.engine.model import Model, forward_log
from pyemo.engine.mood import NativeMoods
from pyemo.engine.threads import ThreadChoice, Threads
from pyemo.engine.tokens import whole
from pyemo.errors import ClosedError, InputError, all_calls_named

if TYPE_CHECKING:
    from typing_extensions import Self

# Fewer cells take less than a model, and are not worth a look at the header.
_LARGE_N_CTX = 1 << 15


@all_calls_named
class BaseEngine:
    """What :class:`pyemo.Engine` is without its sequences; see there for the arguments."""

    def __init__(
        self,
        model: str | os.PathLike[str] | Model = DEFAULT_MODEL,
        *,
        n_ctx: int = 2048,
        n_seq_max: int = 1,
        n_threads: Threads = None,
        n_batch: int = 512,
        n_outputs_max: int = 32,
        kv_type: KVType = DEFAULT_KV_TYPE,
        kv_unified: bool = True,
        n_gpu_layers: int = 0,
    ) -> None:
        self.model = (
            model if isinstance(model, Model) else Model.load(model, n_gpu_layers=n_gpu_layers)
        )
        self.threads = ThreadChoice(n_threads)
        if kv_type not in KV_TYPES:
            raise InputError(f"kv_type {kv_type!r} is unknown; use {', '.join(KV_TYPES)}")
        if not isinstance(kv_unified, bool):
            raise InputError(f"kv_unified = {kv_unified!r}; it must be True or False")
        if whole("n_ctx", n_ctx) > _LARGE_N_CTX:
            require_cache_room(self.model.path, n_ctx, kv_type)
        try:
            self._core: _core.Engine | None = _core.Engine(
                self.model.native,
                n_ctx=whole("n_ctx", n_ctx),
                n_batch=whole("n_batch", n_batch),
                n_seq_max=whole("n_seq_max", n_seq_max),
                n_outputs_max=whole("n_outputs_max", n_outputs_max),
                n_threads=self.threads.n_threads,
                n_threads_batch=self.threads.n_threads,
                kv_type=kv_type,
                kv_unified=kv_unified,
            )
        finally:
            forward_log()
        self.moods = NativeMoods(self.model)
        # What takes several native calls; the native engine has a lock of its own for each.
        self._turns = threading.RLock()
        self.n_outputs_max = n_outputs_max
        self.kv_type: KVType = kv_type
        self.kv_unified = kv_unified

    # --- life ---

    def close(self) -> None:
        """Free the KV cache and buffers. The model stays while others hold it.

        May be called twice.
        """
        self._core = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def native(self) -> _core.Engine:
        """The native engine, for the modules of pyemo.

        Raises:
            ClosedError: the engine was closed.
            ForkedError: the process was forked after a model was loaded.
        """
        check_not_forked()
        if self._core is None:
            raise ClosedError("the engine is closed; open a new one: pyemo.Engine(...)")
        return self._core

    @property
    def turns(self) -> threading.RLock:
        """The lock of what takes several native calls, for the modules of pyemo."""
        check_not_forked()  # in a fork, whoever holds it may be gone
        return self._turns

    # --- facts ---

    @property
    def n_ctx(self) -> int:
        """Cells of the KV cache."""
        return self.native.n_ctx

    @property
    def n_ctx_seq(self) -> int:
        """Tokens that one sequence can have: fewer than ``n_ctx`` where cells are not shared."""
        return self.native.n_ctx_seq

    @property
    def n_batch(self) -> int:
        """Rows of one decode at most."""
        return self.native.n_batch

    @property
    def n_seq_max(self) -> int:
        """Sequences at a time."""
        return self.native.n_seq_max

    @property
    def n_free_sequences(self) -> int:
        """Sequences that can still be opened."""
        return self.native.n_free_sequences

    @property
    def n_threads(self) -> int:
        """Threads of a decode. Setting it fixes it; costs nothing (docs/determinism.md)."""
        return self.native.n_threads

    @n_threads.setter
    def n_threads(self, n_threads: int) -> None:
        choice = ThreadChoice(n_threads)
        self.native.set_n_threads(choice.n_threads, choice.n_threads)
        self.threads = choice

    def follow_load(self, *, within_reply: bool = False) -> None:
        """Set the threads anew if ``n_threads`` is "auto", or "live" where a reply goes on."""
        choice = self.threads
        if not choice.follows:
            return
        n_threads = choice.within_reply() if within_reply else choice.before_reply()
        if n_threads != self.native.n_threads:
            self.native.set_n_threads(n_threads, n_threads)

    @property
    def steering_unsupported(self) -> str:
        """Why this model cannot be steered or read; empty if it can (proved on opening)."""
        return self.native.steering_unsupported

    # --- inside ---

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        try:
            yield
        finally:
            forward_log()

    def __reduce__(self) -> str:
        raise InputError(
            "an engine is neither copied nor pickled: make another on the same model, "
            "Engine(engine.model), or in another process one of its own, "
            f"Engine({str(self.model.path)!r})"
        )

    def __repr__(self) -> str:
        state = (
            "closed" if self._core is None else f"n_ctx={self.n_ctx}, n_seq_max={self.n_seq_max}"
        )
        return f"<Engine {self.model.name}, {state}>"
