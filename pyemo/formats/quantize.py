"""Another format of a model file, made by llama.cpp's own quantizer.

Owns the formats' names, the child process that quantizes, and where the file goes. What the new
format costs is :mod:`pyemo.formats.cost`'s question.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pyemo import _core
from pyemo.choices import DEFAULT_MODEL
from pyemo.errors import InputError, ModelLoadError
from pyemo.files.catalog import requantized_path, resolve_model
from pyemo.files.children import exit_text, python_module
from pyemo.files.local import absolute, cache_dir, check_utf8, file_sha256, replacing
from pyemo.files.targets import checked_target

# llama.cpp's name -> its llama_ftype (llama.h). Those that need an importance matrix are left out.
FORMATS: Mapping[str, int] = MappingProxyType(
    {
        "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16,
        "Q5_1": 9, "Q5_0": 8, "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2,
        "IQ4_NL": 25, "IQ4_XS": 30, "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "Q2_K": 10,
    }
)  # fmt: skip

_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


@dataclass(frozen=True)
class TensorType:
    """How much of a model file has one number type.

    Attributes:
        type: ggml's name, such as ``"q4_0"``.
        n_values: weights of that type.
        n_bytes: what they take in the file.
    """

    type: str
    n_tensors: int
    n_values: int
    n_bytes: int


@dataclass(frozen=True)
class Requantized:
    """A model file in another format.

    Attributes:
        name: what ``--model`` and :class:`pyemo.Engine` take for it.
        path: absolute.
        format: one of :data:`FORMATS`.
        tensor_types: what the file really holds, the largest part first: a format is a mixture,
            and a tensor whose rows do not divide into its blocks gets another type.
        source_path, source_types: the file it was made from, likewise.
        was_there: it was made before, and was left as it is.
    """

    name: str
    path: Path
    format: str
    tensor_types: tuple[TensorType, ...]
    source_path: Path
    source_types: tuple[TensorType, ...]
    was_there: bool


def requantize(
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    format: str = "Q4_0",
    *,
    target: str | os.PathLike[str] | None = None,
    again: bool = False,
    n_threads: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Requantized:
    """Make ``model`` in another format, by llama.cpp's own quantizer in a process of its own.

    The file appears only when it is whole. Where the source is quantized already it is rounded a
    second time: start from F16 or BF16 where you have it. An abort of llama.cpp ends the child,
    not this process.

    Args:
        model: catalog name, path or repository; see :func:`pyemo.files.catalog.resolve_model`.
        format: one of :data:`FORMATS`, whatever its case.
        target: the file to write; None for pyemo's cache, where a model of the catalog is found
            again as ``name:FORMAT`` and any other by the path that is returned.
        again: make it although it is there.
        n_threads: threads of the quantizer.
        on_progress: called with (tensors done, tensors in all).
    Raises:
        InputError: an unknown format, or a target that is the source.
        ModelError: see :func:`pyemo.files.catalog.resolve_model`; a file the quantizer cannot
            convert, or no room.
    """
    wanted = format.strip().upper()
    if wanted not in FORMATS:
        raise InputError(f"no format {format!r}; there are {', '.join(FORMATS)}")
    source = resolve_model(model)
    path = _target(source.path, source.entry.name if source.entry else None, wanted, target)
    if path == source.path or (path.exists() and path.samefile(source.path)):
        raise InputError(f"{path} is the model itself; write to another file")
    _core.check_model_file(str(source.path))
    if path.parent.is_dir():
        path = checked_target(path, "a requantized model", lambda it: _other_model(it, source.path))
    was_there = path.is_file() and not again
    if was_there and (largest := tensor_types(path)[0].type) not in _largest_types(wanted):
        raise InputError(
            f"{path} is the model in another format, mostly {largest}; name another file, or make "
            f"it anew in {wanted} (--again)"
        )
    if not was_there:
        with replacing(path) as temporary:
            _run(source.path, temporary, wanted, n_threads, on_progress)
    return Requantized(
        name=resolve_model(path).name if source.entry and target is None else str(path),
        path=path,
        format=wanted,
        tensor_types=tensor_types(path),
        source_path=source.path,
        source_types=tensor_types(source.path),
        was_there=was_there,
    )


def tensor_types(path: str | os.PathLike[str]) -> tuple[TensorType, ...]:
    """Return the number types of a GGUF file's tensors, the largest part of the file first.

    Raises:
        ModelLoadError: not a GGUF file, or damaged.
    """
    found: dict[str, list[int]] = {}
    for _name, type_, n_values, n_bytes in _core.ModelFile(os.fspath(path)).tensors():
        sums = found.setdefault(type_, [0, 0, 0])
        for i, n in enumerate((1, n_values, n_bytes)):
            sums[i] += n
    types = (TensorType(type_, *sums) for type_, sums in found.items())
    return tuple(sorted(types, key=lambda t: -t.n_bytes))


def _other_model(path: Path, source: Path) -> str | None:
    """Return why a file is not the same model in some format, None where it is."""
    try:
        found, expected = (
            {(name, n) for name, _type, n, _bytes in _core.ModelFile(str(it)).tensors()}
            for it in (path, source)
        )
    except ModelLoadError:
        return "is not a model"
    return None if found == expected else "is another model or a vector"


def _largest_types(format: str) -> set[str]:
    """Return the ggml types that may make up most of a file of a format."""
    base = format.casefold()
    for suffix in ("_s", "_m", "_l"):
        base = base.removesuffix(suffix)
    # Rows that do not divide into blocks of 256 get a type of blocks of 32.
    instead = {"q2_k": "q4_0", "q3_k": "iq4_nl", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
    return {base, instead.get(base, base), "iq4_nl" if base == "iq4_xs" else base, "f16", "f32"}


def _target(
    source: Path, name: str | None, format: str, target: str | os.PathLike[str] | None
) -> Path:
    if target is not None:
        check_utf8(target)
        return absolute(os.path.expanduser(target))
    if name is not None:
        return absolute(requantized_path(name, format))
    # Two files of one name may lie in two folders.
    stem = f"{source.stem}-{file_sha256(source)[:8]}"
    return absolute(cache_dir() / "models" / "requantized" / f"{stem}.{format}.gguf")


def _run(
    source: Path,
    target: Path,
    format: str,
    n_threads: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Quantize in a child; its stdout is llama.cpp's log, line by line."""
    command = [*python_module("pyemo.formats.child"), str(source), str(target)]
    command += [str(FORMATS[format]), str(n_threads), str(os.getpid())]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        try:
            last = _follow(child.stdout, on_progress)
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0 or target.stat().st_size == 0:
        how = exit_text(child.returncode)
        raise ModelLoadError(
            f"llama.cpp's quantizer failed on {source}: {how}; its last words: {last or 'none'}; "
            "check the free disk space and memory, or take another format"
        )


def _follow(lines: Iterable[str], on_progress: Callable[[int, int], None] | None) -> str:
    """Report the tensors as they are done; return the last line that is not about one."""
    last = ""
    for line in lines:
        step = _STEP.search(line)
        if step is None:
            last = line.strip() or last
        elif on_progress is not None:
            on_progress(int(step[1]), int(step[2]))
    return last
