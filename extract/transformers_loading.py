"""A model for transformers: found, checked, on its device; or a named error.

Imports torch only when it loads.

Nothing of a model's repository is ever run: no remote code, and weights from safetensors or GGUF
files only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pyemo.choices import DTYPES, DType
from pyemo.engine.chat_template import plain_prompt, render_chat
from pyemo.engine.messages import Message, as_messages
from pyemo.engine.model import TWO_TURNS, Model
from pyemo.errors import InputError, MissingExtraError, ModelLoadError, ModelNotFoundError
from pyemo.extract.gguf_config import corrections
from pyemo.files import hub_names
from pyemo.files.catalog import catalog
from pyemo.files.local import file_sha256
from pyemo.vectors.identity import ModelIdentity

if TYPE_CHECKING:
    import torch

DeviceMap: TypeAlias = "str | Mapping[str, int | str]"
SILENT = 50  # logging.CRITICAL, which transformers' own module of that name does not export


class Words(Protocol):
    """From text to tokens and back."""

    def prompt_tokens(self, prompt: str) -> list[int]:
        """Return the tokens a reply to ``prompt`` starts from."""
        ...

    def text_tokens(self, text: str) -> list[int]:
        """Return the tokens of a text as it is."""
        ...

    def reply_tokens(self, text: str) -> list[int]:
        """Return the tokens of a text that goes on after others: no BOS, no control tokens."""
        ...

    def text(self, tokens: tuple[int, ...]) -> str:
        """Return the text of tokens, without control tokens."""
        ...

    def is_end(self, token: int) -> bool:
        """Return whether a token ends a reply."""
        ...

    @property
    def end_token(self) -> int | None:
        """The token that a reply ends with; None if there is none."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A transformers model in evaluation mode, its words, and what a vector says of it.

    ``gguf`` is the same file in llama.cpp's hands, where the model was made from one.
    """

    model: Any
    words: Words
    source: ModelIdentity
    gguf: Model | None = None


def load(
    name: str | os.PathLike[str], device: str, dtype: DType, device_map: DeviceMap | None
) -> Loaded:
    """Return a model by path of a GGUF file or folder, name of the catalog, or Hugging Face
    repository.

    Raises:
        MissingExtraError: torch, transformers or accelerate is not installed.
        ModelNotFoundError, ModelLoadError, InputError: see :meth:`TransformersBackend.load`.
    """
    torch = _torch()
    chosen = None if device_map is not None else pick_device(device)
    number_type = _dtype(dtype, chosen)
    text = os.fspath(name).strip()
    path = Path(os.path.expanduser(text)).absolute()
    if path.is_dir():
        loaded = _load_folder(str(path), path.name, number_type, device_map, folder=path)
    elif is_gguf(text, path):
        loaded = _load_gguf(text, number_type, device_map)
    elif (named := hub_names.parse(text)) is not None and not _looks_like_path(text, path):
        if named.revision is not None:
            raise ModelNotFoundError(
                f"{text!r} names a revision, which pyemo reads of GGUF files only; give "
                f"{named.repo!r}, or the folder of a download"
            )
        loaded = _load_folder(named.repo, text, number_type, device_map, folder=None)
    else:
        raise ModelNotFoundError(
            f"no file or folder at {path}, and no model of that name; give a folder with "
            "config.json and *.safetensors, a .gguf file, a name that `pyemo models` lists, or a "
            "repository as org/repo"
        )
    model = loaded.model
    try:
        model = model if chosen is None else model.to(chosen)
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{loaded.source.name} does not fit on {chosen}: {_first_line(error)}; take another "
            "device or dtype"
        ) from error
    model.get_output_embeddings().register_forward_pre_hook(_in_one_piece)
    return Loaded(model.eval(), loaded.words, loaded.source, loaded.gguf)


def _in_one_piece(_module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hand a model's head states that lie together in memory.

    For others, as of the last tokens of several texts, torch copies the head's weights once for
    each text: 336 MB each on Gemma 3 270M.
    """
    return (given[0].contiguous(), *given[1:])


def pick_device(device: str) -> torch.device:
    """Return the device of that name; "auto" is CUDA, then MPS, then the CPU.

    Raises:
        InputError: it is not there.
    """
    loaded = _torch()
    there = ["cpu"]
    if loaded.backends.mps.is_available():
        there.insert(0, "mps")
    if loaded.cuda.is_available():
        there = [f"cuda:{i}" for i in range(loaded.cuda.device_count())] + there
    name = there[0] if device == "auto" else device
    if name in there or (name == "cuda" and there[0].startswith("cuda")):
        chosen: torch.device = loaded.device(name)
        return chosen
    raise InputError(
        f"device {device!r} is not there; this machine has {', '.join(there)} (auto takes the "
        "first)"
    )


def _torch() -> Any:
    try:
        import accelerate  # noqa: F401  # transformers asks for it while loading
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"the transformers back end needs {error.name}, which is not installed: "
            '`pip install "pyemo[extract]"`; or use the engine back end, which needs neither'
        ) from error
    return torch


def _dtype(dtype: DType, device: torch.device | None) -> torch.dtype:
    """ "auto" is float32, and bfloat16 on a CUDA device that has it."""
    torch = _torch()
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; use {', '.join(DTYPES)}")
    if dtype != "auto":
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    fast = device is not None and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if fast else torch.float32  # type: ignore[no-any-return]


def is_gguf(text: str, path: Path) -> bool:
    """Return whether a model's name, or the path it stands for, means a GGUF file."""
    if path.is_file() or text.casefold() in catalog():
        return True
    named = hub_names.parse(text)
    is_one_file = named is not None and (named.file is not None or named.tag is not None)
    return is_one_file or text.endswith(".gguf")


def _looks_like_path(text: str, path: Path) -> bool:
    """A repository is org/name; a folder that is missing may look the same where its parent
    exists."""
    return text.startswith((".", "~", os.sep)) or path.parent.is_dir()


# --- GGUF files ---


class _GGUFWords:
    """llama.cpp's own vocabulary: the tokens are the engine's."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def prompt_tokens(self, prompt: str) -> list[int]:
        return self._model.prompt_tokens(prompt)

    def text_tokens(self, text: str) -> list[int]:
        return self._model.tokenize(text, add_special=True)

    def reply_tokens(self, text: str) -> list[int]:
        return self._model.tokenize(text, add_special=False)

    def text(self, tokens: tuple[int, ...]) -> str:
        return self._model.detokenize(tokens).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        return self._model.is_end(token)

    @property
    def end_token(self) -> int | None:
        return self._model.end_token


def source_of(model: Model) -> ModelIdentity:
    """Return what a vector says of a GGUF model."""
    return ModelIdentity(
        name=model.name,
        architecture=model.architecture,
        n_layer=model.n_layer,
        n_embd=model.n_embd,
        file_sha256=model.file_sha256,
        weights_fingerprint=model.weights_fingerprint,
        chat_template_sha256=model.chat_template_sha256 or "",
    )


def _load_gguf(name: str, dtype: torch.dtype, device_map: DeviceMap | None) -> Loaded:
    from transformers import AutoConfig

    gguf = Model.load(name)
    where = {"gguf_file": gguf.path.name}
    folder = str(gguf.path.parent)
    with _loading(gguf.name):
        config = AutoConfig.from_pretrained(folder, **where)
        for key, value in corrections(gguf.architecture, gguf.metadata).items():
            setattr(config, key, value)
        model = _from_pretrained(folder, dtype, device_map, config=config, **where)
    return Loaded(model, _GGUFWords(gguf), source_of(gguf), gguf)


# --- Hugging Face folders ---


class _TokenizerWords:
    """A Hugging Face tokenizer, with pyemo's own rendering of its chat template."""

    def __init__(self, name: str, tokenizer: Any, ends: set[int]) -> None:
        self._name = name
        self._tokenizer = tokenizer
        self._ends = ends
        self.template: str | None = (
            tokenizer.get_chat_template() if tokenizer.chat_template else None
        )

    def prompt_tokens(self, prompt: str) -> list[int]:
        if self.template is None:
            tokens = self._tokenizer(plain_prompt(prompt))["input_ids"]
        else:
            tokens = self._rendered(prompt)
        if not tokens:
            raise InputError(
                f"the prompt is empty and {self._name} has no BOS token; write at least one word"
            )
        return list(map(int, tokens))

    def text_tokens(self, text: str) -> list[int]:
        # As the engine: what looks like a control token in a text is plain characters.
        return list(map(int, self._tokenizer(text, split_special_tokens=True)["input_ids"]))

    def reply_tokens(self, text: str) -> list[int]:
        tokens = self._tokenizer(text, split_special_tokens=True, add_special_tokens=False)
        return list(map(int, tokens["input_ids"]))

    def text(self, tokens: tuple[int, ...]) -> str:
        return str(
            self._tokenizer.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def is_end(self, token: int) -> bool:
        return token in self._ends

    @property
    def end_token(self) -> int | None:
        tokens = [self._tokenizer.eos_token_id]
        if self.template is not None:
            tokens += self._rendered(TWO_TURNS)
        return next(filter(self.is_end, reversed(tokens)), None)

    def _rendered(self, prompt: str | Sequence[Message]) -> list[int]:
        assert self.template is not None
        text = render_chat(
            self.template,
            as_messages(prompt),
            bos_token=self._tokenizer.bos_token or "",
            eos_token=self._tokenizer.eos_token or "",
        )
        return list(map(int, self._tokenizer(text, add_special_tokens=False)["input_ids"]))


def _load_folder(
    where: str, name: str, dtype: torch.dtype, device_map: DeviceMap | None, folder: Path | None
) -> Loaded:
    from transformers import AutoConfig, AutoTokenizer

    if folder is not None and not (folder / "config.json").is_file():
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        inside = (
            f"it holds {', '.join(ggufs)}: give the file's path"
            if ggufs
            else "it has no config.json"
        )
        raise ModelNotFoundError(f"{folder} is no Hugging Face model: {inside}")
    with _loading(name):
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        model = _from_pretrained(where, dtype, device_map, config=config, use_safetensors=True)
    words = _TokenizerWords(name, tokenizer, _ends(model, tokenizer))
    text = model.config.get_text_config()
    template = words.template
    source = ModelIdentity(
        name=name,
        architecture=str(text.model_type),
        n_layer=int(text.num_hidden_layers),
        n_embd=int(text.hidden_size),
        file_sha256="" if folder is None else _weights_sha256(folder),
        chat_template_sha256=""
        if template is None
        else hashlib.sha256(template.encode()).hexdigest(),
    )
    return Loaded(model, words, source)


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Return every token that one of the model's files names as an end."""
    ends: set[int] = set()
    for owner in (model.generation_config, model.config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        if value is not None:
            ends.update(value if isinstance(value, list) else [value])
    return ends


def _weights_sha256(folder: Path) -> str:
    """Return the hash of the weights' file, or over the hashes of several."""
    hashes = [file_sha256(file) for file in sorted(folder.glob("*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


# --- both ---


def _from_pretrained(
    where: str, dtype: torch.dtype, device_map: DeviceMap | None, **options: Any
) -> Any:
    from transformers import AutoModelForCausalLM

    if device_map is not None:
        options["device_map"] = device_map
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        where, dtype=dtype, trust_remote_code=False, output_loading_info=True, **options
    )
    model, report = loaded
    # What has no weights in the file was drawn at random.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} weights are not in the file, such as {missing[0]}")
    return model


@contextlib.contextmanager
def _loading(name: str) -> Iterator[None]:
    """Keep transformers from drawing progress bars, and name what it cannot load."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity(SILENT)
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        NotImplementedError,
        OSError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelLoadError(
            f"transformers cannot load {name}: {_first_line(error)}; use the engine back end, or "
            "another model"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
