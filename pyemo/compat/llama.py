"""A look-alike of llama-cpp-python's ``Llama`` whose calls take ``steering=``.

Owns what its calls mean in pyemo's words. The shapes of what it returns are ``answers``, what it
refuses is ``asked``.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import random
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from pyemo.compat.answers import Answer, Completion, as_chat, as_chat_chunks
from pyemo.compat.asked import bias_of, cache_type, check_call, check_opening, grammar_of, stop_list
from pyemo.compat.moods import Written, mood_of
from pyemo.engine.engine import Engine
from pyemo.engine.messages import Message
from pyemo.engine.model import Model
from pyemo.engine.row import ReplyLimits
from pyemo.engine.sampling import SamplerParams
from pyemo.engine.scheduler import Scheduler
from pyemo.engine.steering import Steering
from pyemo.engine.tickets import Request
from pyemo.engine.tokens import token_ids
from pyemo.errors import InputError, MissingExtraError, NotBuiltError
from pyemo.files import hub
from pyemo.files.split_files import part_of

N_PARALLEL = 4
"""Replies that run at a time; more wait."""

RANDOM = (-1, 0xFFFFFFFF)
"""Seeds that ask llama.cpp for another one each time."""

Answers: TypeAlias = "Answer | Iterator[Answer]"


class Llama:
    """A model that is called as ``llama_cpp.Llama`` is, and may be steered.

    ```
    from pyemo.compat import Llama

    llm = Llama("smollm2-135m-instruct", n_ctx=2048)
    answer = llm.create_chat_completion(
        [{"role": "user", "content": "How was your day?"}], steering="anger=0.02"
    )
    print(answer["choices"][0]["message"]["content"])
    ```

    The dicts have llama-cpp-python's keys; log-probabilities need no ``logits_all``. An argument
    that asks for what is not built (tools, LoRA) is a ``NotBuiltError``. Calls
    may come from any threads. A prompt that begins as an earlier one goes on from there.

    Args:
        model_path: a file, or any name that ``pyemo.Model.load`` knows.
        n_ctx: tokens that prompt and reply may have; 0 for as many as the model was trained on.
        n_threads: see :class:`pyemo.Engine`.
        seed: where the seeds of calls without one come from; -1 or 2**32 - 1: from chance.
        last_n_tokens_size: tokens that penalties look back on.
        type_k, type_v: llama.cpp's number of the KV cache's type, the same for both.
        steering: the mood of calls that do not say one; see :attr:`steering`.
        others: llama-cpp-python's other arguments, which are accepted where they ask for nothing.
    Raises:
        NotBuiltError: an argument that asks for what is not built.
        ModelError, InputError: see :class:`pyemo.Engine`.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        use_mmap: bool = True,
        use_mlock: bool = False,
        seed: int = RANDOM[1],
        n_ctx: int = 512,
        n_batch: int = 512,
        n_threads: int | None = None,
        last_n_tokens_size: int = 64,
        type_k: int | None = None,
        type_v: int | None = None,
        verbose: bool = True,
        steering: Written = None,
        **others: Any,
    ) -> None:
        check_opening(others)
        kv_type = cache_type(type_k, type_v)
        model = Model.load(
            model_path, n_gpu_layers=n_gpu_layers, use_mmap=use_mmap, use_mlock=use_mlock
        )
        n_ctx = n_ctx or model.n_ctx_train
        engine = Engine(
            model,
            n_ctx=n_ctx,
            n_seq_max=N_PARALLEL,
            n_threads=n_threads,
            n_batch=min(n_batch, n_ctx),
            n_outputs_max=N_PARALLEL,
            kv_type=kv_type,
        )
        self._engine = engine
        self._scheduler = Scheduler(engine)
        self._end = weakref.finalize(self, _close, self._scheduler, engine)
        self.model_path = str(model.path)
        self.metadata = dict(model.metadata)
        self.verbose = verbose
        self._name = str(model_path)
        self._repeat_last_n = last_n_tokens_size
        self._drawing = threading.Lock()
        self.set_seed(seed)
        self.steering = steering

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """Return the model of a Hugging Face repository; needs the extra ``hub``.

        Args:
            filename: its file, or a pattern that fits one, such as ``"*q8_0.gguf"``.
            additional_files: not needed: the parts of a split model are fetched with the first.
            local_dir, cache_dir: only None; huggingface_hub's own cache is used (``HF_HOME``).
            kwargs: see :class:`Llama`.
        Raises:
            InputError: no file fits the pattern, or several; a folder to keep it in.
            ModelNotFoundError: no such repository, or no network.
        """
        if local_dir is not None or cache_dir is not None:
            raise InputError(
                f"local_dir = {local_dir!r}, cache_dir = {cache_dir!r}: a fetched model is kept in "
                "huggingface_hub's own cache; set HF_HOME to move it"
            )
        if filename is None:
            return cls(repo_id, **kwargs)
        return cls(f"{repo_id}:{_only_file(repo_id, filename)}", **kwargs)

    # --- life ---

    def close(self) -> None:
        """Free the KV cache; the instance cannot be called any more. May be called twice."""
        self._end()

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- mood ---

    @property
    def steering(self) -> Steering:
        """The mood of calls that do not say one; takes what ``steering=`` takes.

        That is a :class:`pyemo.Steering`, a text such as ``"anger=0.02@8:20 + calm=-0.01"``, or a
        dict of names and strengths. None and empty ones are unsteered.
        """
        return self._steering

    @steering.setter
    def steering(self, written: Written) -> None:
        self._steering = mood_of(self._engine.model, written)

    def set_control_vector(
        self, name: str | os.PathLike[str], strength: float | None = None
    ) -> None:
        """Steer all calls that do not say a mood by one vector.

        Args:
            name: a bundled emotion or a file.
            strength: None for the one it recommends.
        Raises:
            VectorError: see :meth:`pyemo.ControlVector.load`.
        """
        self.steering = f"{os.fspath(name)}" if strength is None else {os.fspath(name): strength}

    # --- replies ---

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        *,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        model: str | None = None,
        grammar: object = None,
        response_format: object = None,
        logit_bias: Mapping[int, float] | None = None,
        steering: Written = None,
        **others: Any,
    ) -> Answers:
        """Continue ``prompt``; return the answer, or an iterator of its parts with ``stream``.

        Args:
            prompt: a text, in which ``<|im_end|>`` and the like are tokens, or token ids.
            suffix: only None; there it asks for what lies between two texts.
            max_tokens: None, 0 or less for as many as the context has room for.
            temperature: 0 takes the most likely token always.
            logprobs: alternatives to tell with each token.
            echo: put the prompt before the reply's text; not in a stream.
            seed: None for the next of the instance's; -1 from chance. With one, the text does not
                depend on earlier calls: the prompt is read anew.
            model: its name in the answer.
            grammar, response_format: what the reply may be: GBNF, or JSON that fits a schema; see
                :func:`pyemo.compat.asked.grammar_of`.
            logit_bias: token id -> what is added to its logit, -100 to 100, or -inf for never.
            steering: the mood; see :attr:`steering`. None for the instance's, empty for none.
            others: llama-cpp-python's other arguments, which are accepted where they ask for
                nothing.
        Raises:
            InputError: the prompt does not fit into the context, or a value outside its range.
            NotBuiltError: an argument that asks for what is not built.
        """
        check_call(others)
        if suffix is not None:
            raise NotBuiltError("suffix: filling in the middle is not built in pyemo; leave it out")
        if echo and logprobs is not None:
            raise NotBuiltError("log-probabilities of an echoed prompt are not built in pyemo")
        if isinstance(prompt, str):
            tokens = self._engine.model.prompt_tokens(prompt, raw=True)
        else:
            tokens = list(prompt)
        completion = self._begin(
            tokens,
            sampler=self._sampler(
                seed,
                temperature=temperature,
                top_p=top_p,
                min_p=min_p,
                top_k=max(0, top_k),
                repeat_penalty=repeat_penalty,
                frequency_penalty=frequency_penalty,
                presence_penalty=presence_penalty,
                grammar=grammar_of(grammar, response_format),
                logit_bias=bias_of(logit_bias),
            ),
            uses_cache=seed is None,
            max_tokens=max_tokens,
            stop=stop,
            logprobs=logprobs,
            steering=steering,
            model=model,
            text_offset=len(prompt),
            echoed=prompt if echo and isinstance(prompt, str) else "",
        )
        return completion.chunks() if stream else completion.whole()

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        model: str | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        grammar: object = None,
        response_format: object = None,
        logit_bias: Mapping[int, float] | None = None,
        steering: Written = None,
        **others: Any,
    ) -> Answers:
        """Answer ``messages``; return the answer, or an iterator of its parts with ``stream``.

        The model's own chat template is used. A last message of the assistant is the reply's
        beginning, and is continued.

        Args:
            messages: see :data:`pyemo.engine.messages.Message`.
            logprobs: tell each token's log-probability, and ``top_logprobs`` alternatives.
            otherwise as :meth:`create_completion`.
        Raises:
            as :meth:`create_completion`.
        """
        check_call(others)
        answer = self.create_completion(
            self._engine.model.prompt_tokens(messages),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            stream=stream,
            stop=stop,
            seed=seed,
            max_tokens=max_tokens,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            model=model,
            logprobs=(top_logprobs or 0) if logprobs else None,
            grammar=grammar,
            response_format=response_format,
            logit_bias=logit_bias,
            steering=steering,
        )
        return as_chat(answer) if isinstance(answer, dict) else as_chat_chunks(answer)

    def create_chat_completion_openai_v1(
        self, messages: Sequence[Message], *, stream: bool = False, **settings: Any
    ) -> Any:
        """Answer as :meth:`create_chat_completion`, in the classes of the package ``openai``.

        Raises:
            MissingExtraError: ``openai`` is not installed.
        """
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk
        except ImportError as error:
            raise MissingExtraError("this call needs openai: pip install openai") from error
        answer = self.create_chat_completion(messages, stream=stream, **settings)
        if isinstance(answer, dict):
            return ChatCompletion.model_validate(answer)
        return map(ChatCompletionChunk.model_validate, answer)

    def _begin(
        self,
        tokens: list[int],
        *,
        sampler: SamplerParams,
        uses_cache: bool,
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
        logprobs: int | None,
        steering: Written,
        model: str | None,
        text_offset: int = 0,
        echoed: str = "",
    ) -> Completion:
        room = self._engine.n_ctx_seq - len(tokens)
        if room < 1:
            raise InputError(
                f"the prompt has {len(tokens)} tokens and the context window {self.n_ctx()}, which "
                "leaves no room for a reply; shorten it, or open the model with a larger n_ctx"
            )
        wanted = room if max_tokens is None or max_tokens <= 0 else min(max_tokens, room)
        limits = ReplyLimits(wanted, stop_list(stop), logprobs or 0)
        mood = self._steering
        if steering is not None:
            mood = mood_of(self._engine.model, steering, n_tokens=wanted)
        request = Request(tokens, limits, mood, sampler, uses_cache=uses_cache)
        name = self._name if model is None else model
        submit = functools.partial(self._scheduler.submit, request)
        return Completion(submit, name, len(tokens), text_offset, logprobs, echoed)

    def _sampler(self, seed: int | None, **values: Any) -> SamplerParams:
        return SamplerParams(
            **values,
            repeat_last_n=self._repeat_last_n,
            seed=self._next_seed() if seed is None or seed in RANDOM else seed,
        )

    # --- tokens and facts ---

    def set_seed(self, seed: int) -> None:
        """Let the seeds of the calls to come, where they name none, follow from ``seed``."""
        self._seeds = random.SystemRandom() if seed in RANDOM else random.Random(seed)

    def _next_seed(self) -> int:
        with self._drawing:
            return self._seeds.randrange(2**32)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Return the token ids of ``text``, UTF-8; ``special`` reads control tokens in it."""
        return self._engine.model.tokenize(text, add_special=add_bos, parse_special=special)

    def detokenize(
        self,
        tokens: Sequence[int],
        prev_tokens: Sequence[int] | None = None,
        special: bool = False,
    ) -> bytes:
        """Return the bytes of ``tokens``; ``prev_tokens`` do not matter, as there."""
        native = self._engine.model.native
        text = b"".join(native.piece(token, special=special) for token in token_ids(tokens))
        begins_text = len(tokens) > 0 and tokens[0] == native.bos
        return text.removeprefix(b" ") if begins_text else text

    def n_ctx(self) -> int:
        """Return the tokens that prompt and reply may have."""
        return self._engine.n_ctx

    def n_embd(self) -> int:
        """Return the width of the residual stream."""
        return self._engine.model.n_embd

    def n_vocab(self) -> int:
        """Return the number of tokens in the vocabulary."""
        return self._engine.model.n_vocab

    def token_bos(self) -> int:
        """Return the token that begins a text, -1 where there is none."""
        return self._engine.model.native.bos

    def token_eos(self) -> int:
        """Return the token that ends a text, -1 where there is none."""
        return self._engine.model.native.eos

    def token_nl(self) -> int:
        """Return the token of a new line."""
        return self.tokenize(b"\n", add_bos=False)[-1]

    def __repr__(self) -> str:
        return f"<Llama {self._name!r}, {self._steering!r}>"


def _close(scheduler: Scheduler, engine: Engine) -> None:
    scheduler.close()
    engine.close()


def _only_file(repo: str, pattern: str) -> str:
    """Return the one file of a repository that fits the pattern; of a split model the first."""
    files = [name for name in hub.list_files(repo) if name.endswith(".gguf")]
    fitting = [name for name in files if fnmatch.fnmatch(name, pattern)]
    found = [
        name for name in fitting if (part := part_of(Path(name).name)) is None or part.number == 1
    ]
    if len(found) != 1:
        raise InputError(
            f"{len(found) or 'no'} files of {repo} fit {pattern!r}; name one of: {', '.join(files)}"
        )
    return found[0]


__all__ = ["Llama"]
