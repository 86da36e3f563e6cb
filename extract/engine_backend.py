"""Hidden states of the quantized model itself, in the engine: no torch, a third of the memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pyemo.emotions import EMOTIONS
from pyemo.engine.engine import Engine
from pyemo.engine.model import Model
from pyemo.engine.row import ReplyLimits, Row
from pyemo.engine.rows import run
from pyemo.engine.sampling import SamplerParams
from pyemo.engine.steps import step_many
from pyemo.engine.threads import Threads
from pyemo.errors import ContextFullError
from pyemo.extract.backend import Passage, Written
from pyemo.extract.recipe import Recipe
from pyemo.extract.stories import story_prompts
from pyemo.texts import sources
from pyemo.vectors.identity import ModelIdentity

# Cells for texts that are only read: several of the longest at a time.
_READING_CTX = 2048
# A sequence with cells of its own has a multiple of this in llama.cpp, asked for or not.
_CELLS = 256
# Tokens that the name of a user's emotion may take more than those of the built-in ones.
_LONGER_NAMES = 32
# With this many passages a common beginning is computed once: pairs have it, other texts do not.
_LEAST_FORKS = 4
# Hidden states kept at a time while single tokens are read.
_MAX_READ_BYTES = 64 << 20


class EngineBackend:
    """An engine as a back end; its ``n_seq_max`` is how many texts a batch computes."""

    name = "engine"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        model = engine.model
        self.source = ModelIdentity(
            name=model.name,
            architecture=model.architecture,
            n_layer=model.n_layer,
            n_embd=model.n_embd,
            file_sha256=model.file_sha256,
            weights_fingerprint=model.weights_fingerprint,
            chat_template_sha256=model.chat_template_sha256 or "",
        )

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        model: str | os.PathLike[str] | Model,
        recipe: Recipe,
        *,
        parallel: int = 16,
        n_threads: Threads = None,
    ) -> Iterator[EngineBackend]:
        """Open an engine that fits ``recipe``, and close it at the end of the ``with`` block.

        Args:
            parallel: texts computed in one batch; more take more memory, and on two cores 32 are
                no faster than 16.
        Raises:
            as :class:`Engine`.
        """
        loaded = model if isinstance(model, Model) else Model.load(model)
        n_ctx, apart = _READING_CTX, recipe.source == "stories"
        if apart:
            prompts = (
                loaded.prompt_tokens(prompt.text) for prompt in story_prompts(recipe, EMOTIONS)
            )
            longest = max(map(len, prompts)) + _LONGER_NAMES + recipe.max_tokens + 1
            longest = max(longest, *(len(loaded.tokenize(text)) + 1 for text in _read_texts()))
            n_ctx = max(n_ctx, parallel * _CELLS * -(-longest // _CELLS))
        with Engine(
            loaded, n_ctx=n_ctx, n_seq_max=parallel, n_threads=n_threads, kv_unified=not apart
        ) as engine:
            yield cls(engine)

    def prompt_tokens(self, prompt: str) -> list[int]:
        """Return the tokens a reply to ``prompt`` starts from."""
        return self._engine.prompt_tokens(prompt)

    def text_tokens(self, text: str) -> list[int]:
        """Return the tokens of a text as it is."""
        return self._engine.model.tokenize(text, add_special=True)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samplers: Sequence[SamplerParams],
        max_tokens: int,
        on_written: Callable[[int, Written], None],
        skip: int | None = None,
        layers: Sequence[int] = (),
    ) -> None:
        """Write a reply to each prompt; a finished one makes room for the next.

        With ``skip``, hidden states from the reply's token ``skip`` on are pooled while it is
        written. The reply's last token is never decoded, so it counts neither as text nor as read:
        it is the end-of-generation token, or the one that max_tokens cuts off.
        """
        indices: dict[Row, int] = {}
        waiting = iter(range(len(prompts)))
        longest = max((len(prompt) for prompt in prompts), default=0) + max_tokens + 1
        if longest > self._engine.n_ctx_seq:
            raise ContextFullError(
                f"a prompt and its story may take {longest} tokens, but a sequence holds "
                f"{self._engine.n_ctx_seq}; open the engine with a larger n_ctx"
            )

        def admit(running: list[Row]) -> Iterator[Row]:
            room = self._engine.n_ctx
            room -= sum(len(prompts[indices[row]]) + max_tokens + 1 for row in running)
            while self._engine.n_free_sequences and longest <= room:
                index = next(waiting, None)
                if index is None:
                    return
                sequence = self._engine.sequence(list(prompts[index]), sampler=samplers[index])
                row = Row(sequence, ReplyLimits(max_tokens + 1))
                indices[row] = index
                room -= longest
                if skip is not None:
                    sequence.start_reading(layers, begin=len(prompts[index]) + skip)
                yield row

        def finish(row: Row) -> None:
            if row.stop_reason is not None:
                on_written(indices[row], self._written(row, skip))
                del indices[row]
                row.sequence.close()

        try:
            run([], admit=admit, on_token=finish)
        finally:
            for row in indices:
                row.sequence.close()

    def read(self, passages: Sequence[Passage], layers: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the mean hidden states of each passage, float32 (n_passages, n_layers, n_embd)."""
        n_shared = _shared(passages)
        # Only cells that all sequences share can be forked at no cost.
        can_fork = self._engine.n_ctx_seq == self._engine.n_ctx
        if n_shared and can_fork and self._engine.n_seq_max > 1:
            return self._read_forks(passages, layers, n_shared)
        # What comes after the passage cannot change it, so it is not computed.
        rows = self._engine.read_many(
            [passage.tokens[: passage.end] for passage in passages],
            layers=layers,
            pooling="mean",
            tokens=[slice(passage.begin, passage.end) for passage in passages],
        )
        return np.stack(rows)

    def _read_forks(
        self, passages: Sequence[Passage], layers: Sequence[int], n_shared: int
    ) -> npt.NDArray[np.float32]:
        """Read passages with a common beginning, which is computed once and forked."""
        rows: list[npt.NDArray[np.float32]] = []
        room = self._engine.n_ctx - n_shared
        longest = max(passage.end for passage in passages) - n_shared + 1
        size = min(self._engine.n_seq_max - 1, max(1, room // longest))
        with self._engine.sequence(list(passages[0].tokens[:n_shared])) as beginning:
            beginning.logits()  # decodes it
            for first in range(0, len(passages), size):
                with contextlib.ExitStack() as open_forks:
                    forks = []
                    for passage in passages[first : first + size]:
                        fork = open_forks.enter_context(beginning.fork())
                        fork.append(passage.tokens[n_shared : passage.end])
                        fork.start_reading(layers, begin=passage.begin, end=passage.end)
                        forks.append(fork)
                    step_many(forks)
                    rows += [fork.reading()[1] for fork in forks]
        return np.stack(rows)

    def read_tokens(
        self, passages: Sequence[Passage], layers: Sequence[int]
    ) -> list[npt.NDArray[np.float32]]:
        """Return every hidden state of each passage, float32 (end - begin, n_layers, n_embd)."""
        longest = max(passage.end - passage.begin for passage in passages)
        size = max(1, _MAX_READ_BYTES // (longest * len(layers) * self.source.n_embd * 4))
        out: list[npt.NDArray[np.float32]] = []
        for first in range(0, len(passages), size):
            part = passages[first : first + size]
            out += self._engine.read_many(
                [passage.tokens[: passage.end] for passage in part],
                layers=layers,
                pooling="all",
                tokens=[slice(passage.begin, passage.end) for passage in part],
            )
        return out

    def _written(self, row: Row, skip: int | None) -> Written:
        tokens = tuple(result.token for result in row.drawn[:-1])
        text = self._engine.model.detokenize(tokens).decode("utf-8", "replace")
        states = None
        if skip is not None:
            count, rows = row.sequence.reading()
            states = rows if count else None
        return Written(tokens, text, row.stop_reason == "end", states)


def _read_texts() -> Iterator[str]:
    """Yield the texts that are read whatever the recipe: neutral ones, and all vignettes."""
    yield from sources.neutral_texts()
    for emotion in EMOTIONS:
        yield from (vignette.text for vignette in sources.vignettes(emotion))


def _shared(passages: Sequence[Passage]) -> int:
    """Return the length of the passages' common beginning, 0 where it is not worth a fork."""
    if len(passages) < _LEAST_FORKS:
        return 0
    first, last = (pick([passage.tokens for passage in passages]) for pick in (min, max))
    limit = min(passage.begin for passage in passages)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    n = min(n, limit)
    return n if 2 * n * len(passages) >= sum(passage.end for passage in passages) else 0
