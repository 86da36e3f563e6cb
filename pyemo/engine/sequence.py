"""A sequence as its users know it: what it holds, and the model's next words."""

from __future__ import annotations

from collections.abc import Sequence as SequenceABC

from pyemo.engine.cached_sequence import CachedSequence
from pyemo.engine.replies import Reply, make_token
from pyemo.engine.row import ReplyLimits
from pyemo.engine.steps import step_many
from pyemo.engine.tokens import Token
from pyemo.errors import all_calls_named


@all_calls_named
class Sequence(CachedSequence):
    """Tokens with a KV cache, a mood and a sampler. Made by :meth:`Engine.sequence`.

    Assigning ``steering`` acts from the next token decoded on: tokens decoded earlier keep the keys
    and values of the old mood. :meth:`refresh` recomputes them.
    """

    def step(self, *, n_top: int = 0) -> Token:
        """Decode what is pending, draw the next token, append it, and return it.

        Its ``text`` is the token's own, U+FFFD for an unfinished character; iterate over
        :meth:`generate` for text that is put together. It draws past the end of a reply, too:
        :meth:`pyemo.Model.is_end` says whether a token is one.

        Raises:
            ContextFullError: the context is full.
            DecodeAbortedError: logits that are not finite; the tokens stay as they were.
        """
        n = self.n_tokens
        try:
            result = step_many([self], n_top=n_top)[0]
            _, kind = self.segment_at(self.n_tokens - 1)
            return make_token(self, result, result.piece.decode("utf-8", "replace"), kind)
        except BaseException:
            self.cut_to(n)
            raise

    def generate(
        self,
        *,
        max_tokens: int = 128,
        stop: SequenceABC[str] = (),
        n_top: int = 0,
        stop_repetition: bool = False,
    ) -> Reply:
        """Return the model's next words as an iterator of tokens. The sequence stays open."""
        limits = ReplyLimits(max_tokens, stop, n_top, stop_repetition)
        return Reply(self, limits, closes_sequence=False)
