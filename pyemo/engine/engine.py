"""The engine: sequences of tokens over one loaded model, each with its own mood.

The Python face of csrc/engine.cpp: prompts to tokens, steering to native terms, bytes to text.
Nothing above it touches llama.cpp; nothing here knows what an emotion is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceABC
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from pyemo.engine.base_engine import BaseEngine
from pyemo.engine.base_sequence import Pooling, native_pooling
from pyemo.engine.gauges import Gauge
from pyemo.engine.messages import Message
from pyemo.engine.mood import OFF
from pyemo.engine.replies import Reply, finish
from pyemo.engine.row import ReplyLimits
from pyemo.engine.rows import groups
from pyemo.engine.sampling import STANDARD, SamplerParams, chosen
from pyemo.engine.scopes import Segments
from pyemo.engine.sequence import Sequence
from pyemo.engine.steering import Steering
from pyemo.engine.tokens import token_ids, whole
from pyemo.errors import InputError, all_calls_named
from pyemo.measures.perplexity import Score

Prompt: TypeAlias = "str | SequenceABC[Message] | SequenceABC[int]"
"""A user's message, a list of messages, or token ids."""

# Fewer cells take less than a model, and are not worth a look at the header.
_LARGE_N_CTX = 1 << 15


@all_calls_named
class Engine(BaseEngine):
    """A model with a KV cache, ready to generate, score and read.

    ```
    with Engine() as engine:
        angry = ControlVector.load("angry", model=engine.model)
        for token in engine.generate("Hello!", steering=Steering({angry: 0.02})):
            print(token.text, end="", flush=True)
    ```

    Calls from several threads are safe and take turns. Decodes release the GIL; Ctrl-C stops them.

    Args:
        model: catalog name, path or Hugging Face repository (see ``pyemo models``), or a
            :class:`Model` that several engines share.
        n_ctx: cells of the KV cache, shared by all sequences; one token of one sequence takes one,
            a fork's common past is counted once.
        n_seq_max: sequences at a time, 1 to 256.
        n_threads: threads of a decode; None to choose once, now, from the cores this process may
            use and the system's load; "auto" to choose again before each reply; "live" to follow
            the load within replies too. What that does to a result: docs/determinism.md.
        n_batch: rows of one decode at most; longer prompts are taken in chunks.
        n_outputs_max: rows of one decode that have logits, at most; a row costs two times n_vocab
            floats. Scoring takes chunks of this size.
        kv_type: number type of the KV cache.
        kv_unified: whether sequences share the cells. Off, each has n_ctx / n_seq_max of its own
            and does not pass over the others': faster for many long ones at a time (twice as fast
            for 32 of 250 tokens), slower for prompts and forks, and a sequence holds less.
        n_gpu_layers: see :meth:`Model.load`.
    Raises:
        ModelError: see :meth:`Model.load`.
        InputError: a number outside its range.
    """

    # --- generating ---

    def sequence(
        self,
        prompt: Prompt = (),
        *,
        steering: Steering = OFF,
        sampler: SamplerParams | None = None,
        system: str | None = None,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        gauges: Iterable[Gauge] = (),
    ) -> Sequence:
        """Return a new sequence that begins with ``prompt``; nothing is decoded yet.

        Args:
            prompt: a user's message, messages, or token ids; empty to append later.
            steering: its mood; may be changed between any two tokens.
            sampler: how tokens are drawn; None for ``STANDARD``: llama.cpp's defaults, but for
                temperature 0.3 and DRY against loops.
            system: a system message in front.
            raw: take the prompt as it is, without the chat template.
            chat_template_kwargs: variables of the chat template, such as
                ``{"enable_thinking": False}``; see :meth:`Model.think_kwargs`.
            gauges: what to read at every token.
        Raises:
            SequenceLimitError: n_seq_max sequences are open.
            ContextFullError: the prompt is longer than the context.
            InputError, VectorError: see :class:`Steering`, :class:`Gauge` and the prompt.
        """
        tokens = self._prompt_tokens(prompt, system, raw, chat_template_kwargs)
        return Sequence(self, tokens, steering, chosen(sampler), tuple(gauges))

    def generate(
        self,
        prompt: Prompt,
        *,
        steering: Steering = OFF,
        max_tokens: int = 128,
        seed: int | None = None,
        sampler: SamplerParams | None = None,
        stop: SequenceABC[str] = (),
        system: str | None = None,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        gauges: Iterable[Gauge] = (),
        n_top: int = 0,
        stop_repetition: bool = False,
    ) -> Reply:
        """Return the reply to ``prompt`` as an iterator of tokens, each decoded when asked for.

        Stopping to iterate stops the work. The sequence is closed with the reply's end; to go on
        after it, use :meth:`sequence`.

        Args:
            max_tokens: 1 or more.
            seed: shorthand for the seed of ``sampler``.
            stop: strings that end the reply; they are not part of it.
            n_top: alternatives to report with each token.
            stop_repetition: end a reply that goes in circles.
        Raises:
            as :meth:`sequence`.
        """
        limits = ReplyLimits(max_tokens, stop, n_top, stop_repetition)
        sequence = self.sequence(
            prompt,
            steering=steering,
            sampler=chosen(sampler, seed),
            system=system,
            raw=raw,
            chat_template_kwargs=chat_template_kwargs,
            gauges=gauges,
        )
        return Reply(sequence, limits, closes_sequence=True)

    def generate_many(
        self,
        prompts: SequenceABC[Prompt],
        *,
        steering: Steering | SequenceABC[Steering] = OFF,
        max_tokens: int = 128,
        sampler: SamplerParams | SequenceABC[SamplerParams] | None = None,
        stop: SequenceABC[str] = (),
        system: str | None = None,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        fixed_shape: bool = True,
        on_reply: Callable[[int, Reply], None] | None = None,
    ) -> list[Reply]:
        """Return the finished replies to all prompts, computed in batches.

        Args:
            steering, sampler: one for all, or one for each prompt.
            fixed_shape: keep finished sequences as idle rows until their batch ends, so that a
                reply depends on its batch's prompts but not on when the others end
                (docs/determinism.md). Off is faster where replies differ in length.
            on_reply: called with the index and the reply when one is finished.
        Raises:
            ContextFullError: a prompt with its reply is longer than the context.
            otherwise as :meth:`sequence`.
        """
        if isinstance(prompts, (str, bytes)):
            raise InputError("prompts is one text, not a list of them; write generate_many([text])")
        tokens = [
            self._prompt_tokens(prompt, system, raw, chat_template_kwargs) for prompt in prompts
        ]
        moods = _each(steering, Steering, len(prompts), "steering")
        samplers = _each(sampler or STANDARD, SamplerParams, len(prompts), "sampler")
        limits = ReplyLimits(max_tokens, stop)
        replies: list[Reply] = []
        for group in groups(self, [len(ids) + limits.max_tokens for ids in tokens]):
            with contextlib.ExitStack() as stack:
                for i in group:
                    sequence = Sequence(self, tokens[i], moods[i], samplers[i], ())
                    stack.callback(sequence.close)
                    replies.append(Reply(sequence, limits, closes_sequence=False))
                finish(replies, group, fixed_shape=fixed_shape, on_reply=on_reply)
        return replies

    # --- reading and scoring ---

    def score(
        self, text: Prompt, *, given: Prompt | None = None, steering: Steering = OFF
    ) -> Score:
        """Return how likely the model finds ``text``; see :meth:`score_many`."""
        return self.score_many([(text, given)], steering=steering)[0]

    def score_many(
        self,
        texts: SequenceABC[tuple[Prompt, Prompt | None]],
        *,
        steering: Steering | SequenceABC[Steering] = OFF,
    ) -> list[Score]:
        """Return log-probabilities of (text, given) pairs, many texts a batch.

        Texts are taken as they are, without a chat template (pass
        ``given=engine.prompt_tokens(...)`` for one). Without ``given`` a text's first token is
        scored only if the model puts a BOS token before it. ``given`` and ``text`` are tokenized
        apart. For the scope of ``steering``, given is the prompt and text the reply. Computed from
        a clean KV cache in chunks of ``n_outputs_max`` rows; memory is n_outputs_max x n_vocab,
        whatever the length.

        Raises:
            ContextFullError: a text is longer than the context has room for.
            InputError: a text without a token to score.
            DecodeAbortedError: logits that are not finite.
        """
        for i, pair in enumerate(texts):
            if isinstance(pair, (str, bytes)) or len(pair) != 2:
                raise InputError(
                    f"texts[{i}] is not a pair (text, given); without a context write (text, None)"
                )
        jobs = []
        for (text, given), mood in zip(
            texts, _each(steering, Steering, len(texts), "steering"), strict=True
        ):
            before = self._plain_tokens("" if given is None else given, add_special=True)
            after = self._plain_tokens(text, add_special=False)
            tokens = before + after
            if len(tokens) - max(1, len(before)) < 1:
                raise InputError(
                    f"text {text!r} leaves no token to score; it needs one more than it is given"
                )
            segments: Segments = [(0, "prompt"), (len(before), "answer")]
            segments = segments if before else [(0, "answer")]
            jobs.append((tokens, len(before), self.moods.spans(mood, segments, 0, len(tokens))))
        with self._logging():
            rows = self.native.score(jobs)
        return [Score(row, chunk=self.n_outputs_max, kv_type=self.kv_type) for row in rows]

    def read(
        self,
        text: Prompt,
        *,
        layers: Iterable[int] | None = None,
        pooling: Pooling = "mean",
        tokens: slice = slice(None),
        steering: Steering = OFF,
    ) -> npt.NDArray[np.float32]:
        """Return hidden states of one text; see :meth:`read_many`."""
        return self.read_many(
            [text], layers=layers, pooling=pooling, tokens=[tokens], steering=steering
        )[0]

    def read_many(
        self,
        texts: SequenceABC[Prompt],
        *,
        layers: Iterable[int] | None = None,
        pooling: Pooling = "mean",
        tokens: SequenceABC[slice] | None = None,
        steering: Steering = OFF,
    ) -> list[npt.NDArray[np.float32]]:
        """Return for each text the outputs of ``layers``, as the next block reads them.

        Args:
            texts: taken as they are (with BOS where the model expects one), or token ids.
            layers: None for all. The last block costs logits for every token read.
            pooling: "mean" or "last" over the positions: float32 (n_layers, n_embd); "all": float32
                (n_positions, n_layers, n_embd).
            tokens: for each text a slice of its positions, such as slice(10, None); step 1.
            steering: acts while reading; the whole text counts as prompt.
        Raises:
            SteeringUnsupportedError: the model's block outputs cannot be read.
            InputError: no such layer, a text without tokens, an empty slice.
            ContextFullError: a text is longer than the context has room for.
        """
        every = range(self.model.n_layer)
        chosen = [whole("layer", layer) for layer in (every if layers is None else layers)]
        slices = [slice(None)] * len(texts) if tokens is None else list(tokens)
        jobs = []
        for text, part in zip(texts, slices, strict=True):
            ids = self._plain_tokens(text, add_special=True)
            begin, end, step = part.indices(len(ids))
            if begin >= end or step != 1:
                raise InputError(
                    f"positions {part} of a text of {len(ids)} tokens are none; "
                    "take slice(begin, end)"
                )
            spans = self.moods.spans(steering, [(0, "prompt")], 0, len(ids), next_kind=None)
            jobs.append((ids, begin, end, spans))
        self.follow_load()
        with self._logging():
            rows = self.native.read(jobs, chosen, native_pooling(pooling))
        shape = (len(chosen), self.model.n_embd)
        return [row.reshape((-1, *shape) if pooling == "all" else shape) for row in rows]

    def prompt_tokens(
        self,
        prompt: str | SequenceABC[Message],
        *,
        system: str | None = None,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the tokens a reply to ``prompt`` starts from; see :meth:`Model.prompt_tokens`."""
        return self.model.prompt_tokens(
            prompt, system=system, raw=raw, chat_template_kwargs=chat_template_kwargs
        )

    def _prompt_tokens(
        self,
        prompt: Prompt,
        system: str | None,
        raw: bool,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        if isinstance(prompt, str) or _are_messages(prompt):
            return self.model.prompt_tokens(
                prompt,  # type: ignore[arg-type]
                system=system,
                raw=raw,
                chat_template_kwargs=chat_template_kwargs,
            )
        if system is not None or chat_template_kwargs:
            given = "a system prompt" if system is not None else "chat_template_kwargs"
            raise InputError(f"{given} needs a prompt of text or messages, not token ids")
        return token_ids(prompt)  # type: ignore[arg-type]

    def _plain_tokens(self, text: Prompt, *, add_special: bool) -> list[int]:
        if isinstance(text, str):
            return self.model.tokenize(text, add_special=add_special)
        if _are_messages(text):
            raise InputError("messages cannot be scored or read; pass a text or prompt_tokens(...)")
        return token_ids(text)  # type: ignore[arg-type]


def _are_messages(prompt: Prompt) -> bool:
    return isinstance(prompt, SequenceABC) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


_T = TypeVar("_T")


def _each(value: _T | SequenceABC[_T], kind: type[_T], n: int, name: str) -> list[_T]:
    """Return ``value`` n times, or as the list it is."""
    if isinstance(value, kind):
        return [value] * n
    values = list(cast("SequenceABC[_T]", value)) if isinstance(value, Iterable) else [value]
    if wrong := [item for item in values if not isinstance(item, kind)]:
        raise InputError(f"{name} = {wrong[0]!r}; it must be a {kind.__name__}")
    if len(values) != n:
        raise InputError(f"{len(values)} values of {name} for {n} texts; pass one, or one for each")
    return values
