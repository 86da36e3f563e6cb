"""A loaded model: weights, vocabulary, and what identifies it. Immutable; engines may share one."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pyemo import _core
from pyemo.choices import DEFAULT_MODEL
from pyemo.engine import threads
from pyemo.engine.chat_template import plain_prompt, render_messages, variables
from pyemo.engine.contents import Contents, MarkedText, encoded
from pyemo.engine.forks import check_not_forked, note_load
from pyemo.engine.messages import Message, as_messages
from pyemo.engine.scripts import native_scripts
from pyemo.engine.thoughts import Tags, Thoughts, switches_of, tags_of
from pyemo.engine.tokens import token_ids, whole
from pyemo.errors import InputError, ModelLoadError, all_calls_named
from pyemo.files.catalog import resolve_model
from pyemo.files.local import FileStamp, file_stamp
from pyemo.files.split_files import model_sha256, parts_of

LLAMA_CPP_PYTHON: str = _core.llama_cpp_python
"""Version of llama-cpp-python that the extension was built against, and runs on."""

_logger = logging.getLogger("pyemo.llama")


def _check_llama_cpp() -> None:
    """The extension and the installed libllama must be the same: its ABI is not stable."""
    # As a rule its folder's name says it; importlib.metadata takes 30 ms and 4 MB to import.
    spec = importlib.util.find_spec("llama_cpp")
    if spec is not None and spec.origin is not None:
        info = f"llama_cpp_python-{_core.llama_cpp_python}.dist-info"
        if (Path(spec.origin).parents[1] / info).is_dir():
            return
    from importlib.metadata import version

    installed = version("llama-cpp-python")
    if installed != _core.llama_cpp_python:
        raise ImportError(
            f"pyemo was built against llama-cpp-python {_core.llama_cpp_python}, but {installed} "
            f"is installed; run: pip install llama-cpp-python=={_core.llama_cpp_python}"
        )


_check_llama_cpp()


def forward_log() -> None:
    """Hand llama.cpp's log lines, from level INFO on, to the ``pyemo.llama`` logger."""
    for level, line in _core.drain_log():
        _logger.log(level, line)


@all_calls_named
class Model:
    """A GGUF model in memory.

    Example:
        >>> model = Model.load()
        >>> model.architecture, model.n_layer, model.n_embd
        ('llama', 30, 576)
    """

    def __init__(
        self, native: _core.Model, name: str, path: Path, stamp: tuple[FileStamp, ...]
    ) -> None:
        """Use :meth:`load`."""
        self._native = native
        self._stamp = stamp
        self.name = name
        self.path = path
        self.metadata: Mapping[str, str] = MappingProxyType(native.metadata())

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        n_gpu_layers: int = 0,
        use_mmap: bool = True,
        use_mlock: bool = False,
    ) -> Model:
        """Load a model by catalog name, path, or Hugging Face repository.

        Args:
            name: see ``pyemo models``; a path that exists wins.
            n_gpu_layers: layers to put on a GPU, -1 for all; needs a llama-cpp-python built for it.
                Not run by us: pyemo's tests have no GPU.
            use_mmap: map the file instead of reading it; pages then count once for all processes.
            use_mlock: keep the weights from being swapped out.

        Raises:
            ModelNotFoundError, ModelChecksumError: see :func:`pyemo.files.catalog.resolve_model`.
            ModelLoadError: not a GGUF, cut off, damaged, or unknown to this llama.cpp.
        """
        for option, value in ("use_mmap", use_mmap), ("use_mlock", use_mlock):
            if not isinstance(value, bool):
                raise InputError(f"{option} = {value!r}; it must be True or False")
        check_not_forked()
        note_load()
        threads.watch()  # loading gives the engine's first look at the system's load its span
        resolved = resolve_model(name)
        stamp = _stamp(resolved.path)
        try:
            native = _core.Model(
                str(resolved.path),
                use_mmap=use_mmap,
                use_mlock=use_mlock,
                n_gpu_layers=whole("n_gpu_layers", n_gpu_layers),
            )
        finally:
            forward_log()
        return cls(native, resolved.name, resolved.path, stamp)

    @property
    def native(self) -> _core.Model:
        """The native model, for the modules of pyemo.

        Raises:
            ForkedError: the process was forked after a model was loaded.
        """
        check_not_forked()
        return self._native

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, such as ``llama`` or ``gemma3``."""
        return self.metadata.get("general.architecture", "")

    @property
    def n_layer(self) -> int:
        """Number of blocks; layers are 0 to n_layer - 1."""
        return self.native.n_layer

    @property
    def n_embd(self) -> int:
        """Width of the residual stream."""
        return self.native.n_embd

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.native.n_vocab

    @property
    def n_ctx_train(self) -> int:
        """Context length the model was trained on, in tokens."""
        return self.native.n_ctx_train

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja chat template, or None for a base model."""
        return self.metadata.get("tokenizer.chat_template")

    @functools.cached_property
    def scripts(self) -> _core.Scripts:
        """Which scripts its tokens have letters of, for the modules of pyemo."""
        return native_scripts(self.native)

    @functools.cached_property
    def file_sha256(self) -> str:
        """SHA-256 of the file, or of all parts of a split model; remembered by path and time.

        Raises:
            ModelLoadError: the file has changed since it was loaded.
        """
        digest = model_sha256(self.path)
        self._check_unchanged()
        return digest

    @functools.cached_property
    def weights_fingerprint(self) -> str:
        """SHA-256 of float32 norm tensors and vocabulary; quantization leaves both as they are.

        A split model has that of the same model in one file.
        """
        import hashlib  # with OpenSSL's library; not every use needs it

        material = _core.fingerprint_material(str(self.path))
        self._check_unchanged()
        return hashlib.sha256(material).hexdigest()

    def _check_unchanged(self) -> None:
        if _stamp(self.path) != self._stamp:
            raise ModelLoadError(
                f"{self.path} has changed since it was loaded, so that it no longer says what is "
                "in memory; load it again"
            )

    @property
    def chat_template_sha256(self) -> str | None:
        """SHA-256 of the chat template's UTF-8 text, or None without one."""
        template = self.chat_template
        if template is None:
            return None
        import hashlib

        return hashlib.sha256(template.encode()).hexdigest()

    def tokenize(
        self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Return the token ids of ``text``. Every byte sequence survives the way there and back.

        Args:
            text: str (lone surrogates from ``errors="surrogateescape"`` become their bytes) or
                bytes.
            add_special: put the tokens around it that the model expects around a text, such as BOS.
            parse_special: read ``<|im_end|>`` and the like as one token; off, they are plain
                characters.
        Raises:
            InputError: bytes that are not UTF-8 and a vocabulary without tokens for them; a lone
                surrogate that stands for no byte.
        """
        if isinstance(text, str):
            return encoded(self.native, text, add_special=add_special, parse_special=parse_special)
        return self.native.tokenize(text, add_special=add_special, parse_special=parse_special)

    def is_end(self, token: int) -> bool:
        """Return whether a model ends its reply with this token id."""
        return self.native.is_end_of_generation(token)

    @property
    def end_token(self) -> int | None:
        """The token id that ends a reply: what the chat template puts behind one, else EOS.

        None where neither ends a reply.
        """
        tokens = [self.native.eos]
        if self.chat_template is not None:
            tokens += self.prompt_tokens(TWO_TURNS)
        return next(filter(self.is_end, reversed(tokens)), None)

    def piece(self, token: int) -> bytes:
        """Return the text of one token id; empty for control tokens."""
        return self.native.piece(token, special=False)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """Return the bytes of ``tokens``; control tokens are left out unless ``special``.

        Raises:
            InputError: a token id outside 0 to n_vocab - 1.
        """
        pieces = [self.native.piece(token, special=special) for token in token_ids(tokens)]
        text = b"".join(pieces)
        return text[1:] if self.native.adds_space_prefix and text.startswith(b" ") else text

    def prompt_text(
        self,
        messages: Sequence[Message],
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Return ``messages`` as the model's chat template writes them, up to where a reply begins.

        A last message of the assistant is the reply's beginning, and is continued.

        Args:
            messages: see :data:`Message`.
            chat_template_kwargs: further variables of the template, such as
                ``{"enable_thinking": False}``; see :meth:`think_kwargs`.
        Raises:
            InputError: the model has no chat template, or it refuses these messages.
        """
        marked, mark = self.marked_prompt(messages, chat_template_kwargs)
        return marked.replace(mark, "")

    def marked_prompt(
        self, messages: Sequence[Message], arguments: Mapping[str, Any] | None = None
    ) -> MarkedText:
        """Return what :meth:`prompt_text` does, with marks in what was said; see ``contents``.

        Raises:
            InputError: as :meth:`prompt_text`.
        """
        template = self.chat_template
        if template is None:
            raise InputError(f"{self.name} has no chat template; put everything into one text")
        plain = as_messages(messages, template=template)
        mark = self.contents.mark_for(plain)
        text = render_messages(
            template,
            [self.contents.marked(message, mark) for message in plain],
            mark,
            _template_arguments(arguments),
            bos_token=self._special_text(self.native.bos),
            eos_token=self._special_text(self.native.eos),
        )
        return MarkedText(text, mark)

    def think_kwargs(self, on: bool) -> dict[str, Any]:
        """Return what turns the thinking of the model's chat template on or off.

        It is for ``chat_template_kwargs``; empty to turn off what no template turns on.

        Raises:
            InputError: the template has no switch for it.
        """
        template = self.chat_template or ""
        found = switches_of(variables(template), on=on)
        if not found and (on or self.thought_tags is not None):
            raise InputError(
                f"the chat template of {self.name} has no switch for thinking; "
                "pass its own variables as chat_template_kwargs (--template-arg NAME=VALUE)"
            )
        return found

    def answer_tokens(
        self, prompt: str, *, system: str | None = None, raw: bool = False
    ) -> list[int]:
        """Return the tokens an answer to ``prompt`` starts from, without thoughts before it.

        As :meth:`prompt_tokens`, with thinking off where the template has a switch for it: what is
        judged and measured is what a model says.

        Raises:
            InputError: the prompt ends in thoughts that cannot be turned off; as
                :meth:`prompt_tokens`.
        """
        off = {} if raw else switches_of(variables(self.chat_template or ""), on=False)
        tokens = self.prompt_tokens(prompt, system=system, raw=raw, chat_template_kwargs=off)
        state = None if raw else self.thoughts_after(tokens)
        if state is not None and state.kind == "thinking":
            raise InputError(
                f"{self.name} thinks before it answers, and its chat template has no switch for "
                "it; its answers cannot be measured at a few tokens: use another model, or "
                "raw=True (--raw)"
            )
        return tokens

    def thoughts_after(self, tokens: Sequence[int]) -> Thoughts | None:
        """Return where a reply to a prompt of these tokens begins; None for a model without.

        It begins in thoughts if the prompt opens them and no control token follows.
        """
        tags = self.thought_tags
        if tags is None:
            return None
        behind = ""
        for token in reversed(tokens[-_LONGEST_BEGUN:]):
            text = self.native.piece(token, special=True).decode("utf-8", "replace")
            behind = text + behind
            if tags.end in behind:
                break
            if tags.begin in behind:
                return Thoughts(tags, kind="thinking", may_begin=False)
            if self.contents.is_control(token) and text not in tags.begin:
                break
        return Thoughts(tags)

    @functools.cached_property
    def thought_tags(self) -> Tags | None:
        """What the chat template has before and behind thoughts; None for a model without."""
        return tags_of(self.chat_template or "")

    @functools.cached_property
    def contents(self) -> Contents:
        """What keeps control tokens out of what is said to this model."""
        return Contents(self.native, self.chat_template or "")

    def prompt_tokens(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the tokens a reply to ``prompt`` starts from.

        With a chat template the prompt is a user's message (or a list of messages) in it, and no
        control token comes from what a message says. Without one (a base model) the reply follows
        the prompt and a blank line, unless the prompt ends its last line itself: so voices are
        trained, and so prompts get answers. With ``raw`` it is a text to be continued. In both
        texts ``<|im_end|>`` and the like are read as tokens.

        Args:
            chat_template_kwargs: see :meth:`prompt_text`.
        Raises:
            InputError: empty prompt; what needs a chat template, for a model without one.
        """
        if not raw and self.chat_template is not None:
            # As transformers: the template writes its own BOS where the model wants one.
            messages = as_messages(prompt, system, template=self.chat_template)
            marked = self.marked_prompt(messages, chat_template_kwargs)
            return self._not_empty(self.contents.tokens(*marked))
        if not isinstance(prompt, str) or system is not None or chat_template_kwargs:
            given = "a system prompt" if system is not None else "messages"
            given = given if not isinstance(prompt, str) or system is not None else "its variables"
            raise InputError(
                f"{self.name} is used without a chat template and cannot take {given}; "
                "put everything into one text"
            )
        text = prompt if raw else plain_prompt(prompt)
        return self._not_empty(self.tokenize(text, add_special=True, parse_special=True))

    def _special_text(self, token: int) -> str:
        return (
            self.native.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""
        )

    @staticmethod
    def _not_empty(tokens: list[int]) -> list[int]:
        if not tokens:
            raise InputError(
                "the prompt is empty and this model has no BOS token; write at least one word"
            )
        return tokens

    def __reduce__(self) -> str:
        raise InputError(
            "a loaded model is neither copied nor pickled: engines of one process share it as it "
            f"is, Engine(model); another process loads it anew, Model.load({str(self.path)!r})"
        )

    def __repr__(self) -> str:
        size = f"n_layer={self.n_layer}, n_embd={self.n_embd}"
        return f"Model({self.name!r}, {self.architecture}, {size})"


def _stamp(path: Path) -> tuple[FileStamp, ...]:
    """Return what a change of a model's file, or of a part of it, is known by."""
    return tuple(map(file_stamp, parts_of(path)))


_LONGEST_BEGUN = 4096
"""Tokens of a thought that is begun and to be continued, at most."""

TWO_TURNS = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
)
"""A conversation with a whole reply in it."""

_FILLED = ("messages", "add_generation_prompt", "bos_token", "eos_token")


def _template_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the caller's variables of the template, None left out."""
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping) or not all(isinstance(key, str) for key in arguments):
        raise InputError(
            f"chat_template_kwargs = {arguments!r}; pass a mapping such as "
            "{'enable_thinking': False}"
        )
    if filled := [key for key in arguments if key in _FILLED]:
        raise InputError(f"chat_template_kwargs cannot set {filled[0]!r}, which pyemo fills in")
    return {key: value for key, value in arguments.items() if value is not None}
