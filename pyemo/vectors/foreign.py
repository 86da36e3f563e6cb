"""A vector as any tool leaves it on disk: GGUF, safetensors, ``.pt``, or a saklas pack.

Owns which file is whose and what its numbers mean: which number block 0 has, which architecture
the vector is for, what was left out. What a file does not say is asked for, and what was taken as
what is said in notes; nothing is guessed in silence. docs/other-tools.md has the table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pyemo.errors import InputError, VectorError, VectorFileError, VectorNotFoundError
from pyemo.vectors import file as vector_file
from pyemo.vectors import saklas_pack, torch_file
from pyemo.vectors.control_vector import ControlVector
from pyemo.vectors.file import Float32Array
from pyemo.vectors.gguf_header import shown, shown_path
from pyemo.vectors.identity import Identified
from pyemo.vectors.metadata import VectorMetadata
from pyemo.vectors.safetensors_file import read_tensors

SUFFIXES = (".safetensors", ".pt", ".pth")
"""Files of other tools that are no GGUF."""

SAKLAS, STEERING_VECTORS, PERSONA_VECTORS = "saklas", "steering-vectors", "persona_vectors"

_UNKNOWN = "not known"
_NUMBER = re.compile(r"(?:.*[^0-9])?([0-9]{1,4})(?:[^0-9]*)")
_PERSONA = re.compile(r".+_(?:prompt_avg|response_avg|prompt_last)_diff\.pt")
_DEBIAS = "__debias"


@dataclass(frozen=True)
class ForeignVector:
    """A vector of another tool as pyemo takes it, in the unit "raw" unless the file says more.

    Attributes:
        vector: with layers counted from 0, as everywhere in pyemo.
        path: the file it was read from.
        tool: whose file it is, as far as can be told.
        notes: what was taken as what, and what to know before using it; one sentence each.
    """

    vector: ControlVector
    path: Path
    tool: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """Rows by the number a file gives them; ``first_block`` is block 0's, None if not said.

    A file of one row without a number has it under -1.
    """

    rows: Mapping[int, Float32Array]
    tool: str
    first_block: int | None
    notes: tuple[str, ...] = ()
    metadata: VectorMetadata = field(default_factory=VectorMetadata)
    is_stack: bool = False
    is_gguf: bool = False


def is_foreign(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a file that is no GGUF, or a saklas pack, by its name."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES or saklas_pack.is_pack(path)


def read_foreign(
    path: str | os.PathLike[str],
    *,
    layer_base: int | None = None,
    layer: int | None = None,
    hint: str = "",
    flip: bool = False,
    model: Identified | None = None,
) -> ForeignVector:
    """Return the vector in a file of any tool, and what was taken as what.

    Args:
        path: a GGUF control vector, a .safetensors or .pt file, or a saklas pack with one of them.
        layer_base: the number that the file gives block 0, for files that do not say, or wrongly.
        layer: the block of a file that holds one direction without a number.
        hint: the architecture it is for, where the file does not say; as llama.cpp or transformers
            spells it.
        flip: turn every direction round.
        model: the model it is for; tells how many rows there must be, and the architecture.
    Raises:
        VectorNotFoundError: no such file.
        VectorFileError: damaged, of no known form, or a .pt file with more than tensors in it.
        InputError: the file does not say which blocks its rows are for, and nobody else did.
        MissingExtraError: a .pt file, and torch is not installed.
    """
    if layer_base not in (None, 0, 1):
        raise InputError(f"a layer base is 0 or 1, got {layer_base}")
    file = _chosen(Path(os.path.expanduser(path)))
    found = _read(file)
    rows, notes = _blocks(found, file, layer_base, layer, model)
    metadata = replace(found.metadata, architecture=hint) if hint else found.metadata
    if model is not None and not metadata.architecture:
        metadata = replace(metadata, architecture=model.architecture)
        notes = (*notes, f"its architecture is taken from the model: {model.architecture}")
    shift = _shift(found, layer_base)
    if shift and metadata.unit != "raw":
        raise InputError(
            f"{shown_path(file)} is in residual units and counts blocks from 0; leave "
            "--layer-base out"
        )
    if shift or len(rows) < len(found.rows):
        metadata = metadata.unmeasured()
    try:
        vector = ControlVector(rows, name=_name(file), metadata=metadata)
    except VectorError as error:
        raise type(error)(f"vector file {shown_path(file)}: {error}") from None
    if flip:
        turned = -vector
        vector = turned.with_metadata(turned.metadata, name=vector.name)
        notes = (*notes, "every direction was turned round, as asked")
    return ForeignVector(vector, file, found.tool, (*notes, *_warnings(vector, file, found.tool)))


# --- which file ---


def _chosen(path: Path) -> Path:
    """Return the tensor file that is meant: the path itself, or the only one of a pack."""
    if not path.is_dir():
        return path
    if not saklas_pack.is_pack(path):
        raise VectorFileError(f"{shown_path(path)} is a folder without a pack.json; name one file")
    pack = saklas_pack.read_pack(path)
    if len(pack.tensors) == 1:
        return pack.tensors[0]
    names = ", ".join(shown(tensor.name) for tensor in pack.tensors)
    has = f"vectors for {len(pack.tensors)} models; name one file of it: {names}"
    if not pack.tensors:
        has = "no .gguf or .safetensors; saklas makes one when its concept is fitted on a model"
    raise VectorFileError(f"the saklas pack {shown_path(path)} has {has}")


def _read(path: Path) -> _Found:
    try:
        if not path.is_file():
            raise VectorNotFoundError(f"no vector file {shown_path(path)}; check the path")
        with path.open("rb") as file:
            head = file.read(4)
        if head == b"GGUF":
            return _gguf(path)
        if os.path.getsize(path) > vector_file.MAX_FILE_BYTES:
            raise VectorFileError(
                f"has over {vector_file.MAX_FILE_BYTES} bytes: no vector is so large"
            )
        if path.suffix.lower() == ".safetensors":
            return _safetensors(path)
        if path.suffix.lower() in SUFFIXES:
            return _torch(path)
    except VectorNotFoundError:
        raise
    except VectorError as error:
        named = str(error).startswith("vector file")
        raise type(error)(
            str(error) if named else f"vector file {shown_path(path)} {error}"
        ) from None
    except (OSError, ValueError) as error:
        raise VectorFileError(f"vector file {shown_path(path)} cannot be read: {error}") from error
    raise VectorFileError(
        f"vector file {shown_path(path)} is of no known form; pass GGUF, {' or '.join(SUFFIXES)}"
    )


# --- each form ---


def _gguf(path: Path) -> _Found:
    content = vector_file.read(path)
    notes = []
    if content.writer == vector_file.CVECTOR_GENERATOR:
        notes.append(
            "its program measures the output of block N-1 and calls it direction N, which "
            "llama.cpp adds to block N; so does pyemo. pyemo convert --layer-base 1 puts it where "
            "it was measured. With --method pca the sign is a matter of chance"
        )
    extra = sorted(
        key for key in content.fields if key.startswith("controlvector.") and key.count(".") == 1
    )
    if extra:
        said = (f"{key.partition('.')[2]} {shown(content.fields[key], 40)}" for key in extra)
        notes.append(f"it says: {', '.join(said)}")
    if 0 in content.directions:
        notes.append(
            "direction.0 is taken as block 0, as EasySteer and saklas count; llama.cpp refuses it"
        )
    tool = content.writer or "repeng, or one that writes as it does"
    metadata = VectorMetadata.from_file(content)
    return _Found(content.directions, tool, 0, tuple(notes), metadata, is_gguf=True)


def _safetensors(path: Path) -> _Found:
    with path.open("rb") as file:
        tensors = read_tensors(file)
    described = saklas_pack.sidecar(path)
    source = saklas_pack.model_in(path) if described or _is_in_pack(path) else ""
    metadata = VectorMetadata(source_model=source[:200])
    if all(re.fullmatch(r"layer_(0|[1-9][0-9]{0,3})", name) for name in tensors):
        rows = {int(name.partition("_")[2]): row for name, row in tensors.items()}
        return _Found(rows, SAKLAS, 0, ("layer_N is block N, from 0, as in saklas",), metadata)
    if any(".mean" in name or ".basis" in name for name in tensors) and described == {}:
        _refuse_manifold()
    return _named_tensors(tensors, path)


def _torch(path: Path) -> _Found:
    value = torch_file.read_object(path)
    if isinstance(value, dict) and isinstance(value.get("layer_activations"), dict):
        kind = value.get("layer_type", "decoder_block")
        if kind != "decoder_block":
            raise VectorFileError(
                f"steers {shown(kind)}; only the output of whole blocks (decoder_block) is steered"
            )
        value = value["layer_activations"]
    if isinstance(value, dict) and value and all(type(key) is int for key in value):
        note = "a dict of layers is taken as steering-vectors counts: from 0"
        return _Found(_rows(value), STEERING_VECTORS, 0, (note,))
    if isinstance(value, dict):
        return _named_tensors(value, path)
    if isinstance(value, list):
        value = _stacked(value)
    if not isinstance(value, np.ndarray):
        raise VectorFileError(f"holds {shown(value)}; a vector is made of tensors")
    return _array(value, path)


def _named_tensors(tensors: Mapping[Any, Any], path: Path) -> _Found:
    """Return rows by the number in each name; where there is one tensor, what its shape says."""
    if len(tensors) == 1:
        only = next(iter(tensors.values()))
        if isinstance(only, np.ndarray):
            return _array(only, path)
    rows: dict[int, Any] = {}
    for name, row in tensors.items():
        match = _NUMBER.fullmatch(str(name))
        if match is None or int(match[1]) in rows:
            raise VectorFileError(
                f"holds {shown(list(map(str, tensors)))}; pyemo reads one direction for each "
                "layer, with the layer's number in its name, or one tensor of all of them"
            )
        rows[int(match[1])] = row
    return _Found(_rows(rows), _UNKNOWN, 0 if 0 in rows else None)


def _array(array: Float32Array, path: Path) -> _Found:
    """Return the rows of one tensor: one direction, or one for each layer."""
    if array.ndim > 2 and array.size == np.prod(array.shape[-2:]):
        array = array.reshape(array.shape[-2:])
    if array.ndim == 1:
        return _Found({-1: array}, _UNKNOWN, None)
    if array.ndim != 2:
        raise VectorFileError(f"has a tensor of shape {array.shape}; it must be (n_layer, n_embd)")
    if _PERSONA.fullmatch(path.name):
        note = "row 0 is the embedding and row N the output of block N-1, as in persona_vectors"
        return _Found(dict(enumerate(array)), PERSONA_VECTORS, 1, (note,), is_stack=True)
    return _Found(dict(enumerate(array)), _UNKNOWN, None, is_stack=True)


# --- which blocks ---


def _blocks(
    found: _Found, path: Path, layer_base: int | None, layer: int | None, model: Identified | None
) -> tuple[dict[int, Float32Array], tuple[str, ...]]:
    """Return the rows by block, and what was taken as what."""
    if -1 in found.rows:
        if layer is None:
            raise InputError(
                f"{shown_path(path)} holds one direction and does not say its block; name it, "
                "counted from 0: pyemo convert --layer N"
            )
        return {layer: found.rows[-1]}, (*found.notes, f"its one direction is for block {layer}")
    if layer is not None:
        raise InputError(
            f"{shown_path(path)} says which layers its {len(found.rows)} directions are for; "
            "leave --layer out"
        )
    if not found.rows:
        raise VectorFileError(f"vector file {shown_path(path)} holds no direction")
    base, why = _base(found, path, layer_base, model)
    rows = {number - base: row for number, row in found.rows.items() if number >= base}
    notes = [*found.notes, *filter(None, [why])]
    if len(rows) < len(found.rows):
        notes.append("number 0 lies before the first block (the embedding) and was left out")
    empty = [block for block, row in rows.items() if not row.any()]
    if empty and not found.is_gguf:
        notes.append(
            f"{len(empty)} directions of zeros were left out, the first at block {empty[0]}"
        )
        rows = {block: row for block, row in rows.items() if row.any()}
    if not rows:
        raise VectorFileError(f"vector file {shown_path(path)} has no direction for any block")
    return rows, tuple(notes)


def _base(
    found: _Found, path: Path, layer_base: int | None, model: Identified | None
) -> tuple[int, str]:
    """Return the number that the file gives block 0, and how that is known where it was not said.

    Raises:
        InputError: nobody says.
    """
    if layer_base is not None:
        return layer_base, f"block 0 has number {layer_base} in it, as asked"
    if found.first_block is not None:
        return found.first_block, ""
    base = -1 if model is None else len(found.rows) - model.n_layer
    if model is not None and found.is_stack and base in (0, 1):
        kind = "the embedding and each block's output" if base else "one for each block"
        return base, f"{len(found.rows)} rows for {model.n_layer} blocks: {kind}"
    numbers = f"layers {min(found.rows)} to {max(found.rows)}"
    has = f"{len(found.rows)} rows" if found.is_stack else numbers
    raise InputError(
        f"{shown_path(path)} has {has} and does not say which is block 0: pyemo convert "
        "--layer-base 0 if number 0 is the output of the first block, 1 if number 1 is (number 0 "
        "is then the embedding)" + (", or name its model with -m" if found.is_stack else "")
    )


def _shift(found: _Found, layer_base: int | None) -> int:
    return 0 if layer_base is None or found.first_block is None else layer_base - found.first_block


# --- what to know ---


def _warnings(vector: ControlVector, path: Path, tool: str) -> list[str]:
    """Return what a user of the vector should know beside its layers."""
    notes = []
    lengths = [float(np.linalg.norm(row.astype(np.float64))) for row in vector.directions.values()]
    if vector.unit == "raw" and max(lengths) > 1.05 * min(lengths) and tool != vector_file.PYEMO:
        notes.append(
            f"its directions are {min(lengths):.3g} to {max(lengths):.3g} long, which is part of "
            "the method; `pyemo rescale` keeps their proportions"
        )
    if zeros := vector.zero_layers:
        is_all = zeros == vector.layers
        which = "all its directions" if is_all else f"{len(zeros)} of its {len(lengths)} directions"
        where = "" if is_all else f", the first at block {zeros[0]}"
        notes.append(f"{which} are zeros, which steer nothing{where}")
    if "__" in path.stem and path.suffix == ".gguf" and not path.stem.endswith(_DEBIAS):
        other = path.with_name(path.stem.rpartition("__")[0] + _DEBIAS + ".gguf")
        if other.is_file():
            notes.append(
                f"it is one side of a pack: steer with {shown(other.name)} too, both with the same "
                "strength"
            )
    if not vector.metadata.architecture:
        notes.append("it does not say which architecture it is for; --hint or -m does")
    return notes


def _is_in_pack(path: Path) -> bool:
    return saklas_pack.is_pack(path.parent)


def _name(path: Path) -> str:
    return path.name.removesuffix(path.suffix)


def _rows(values: Mapping[Any, Any]) -> dict[int, Float32Array]:
    """Return each value as a row: a tensor of shape (1, 1, n) is one too."""
    rows = {}
    for number, row in values.items():
        is_row = isinstance(row, np.ndarray) and row.ndim > 0 and row.size == row.shape[-1] > 0
        if not is_row or number < 0:
            what = f"shape {row.shape}" if isinstance(row, np.ndarray) else shown(row)
            raise VectorFileError(
                f"has {what} for layer {number}; a direction is one row (n_embd,), a layer a "
                "number from 0"
            )
        rows[number] = row.reshape(-1)
    return rows


def _stacked(values: list[Any]) -> Any:
    rows = [value for value in values if isinstance(value, np.ndarray) and value.ndim == 1]
    if not rows or len(rows) < len(values) or len({row.size for row in rows}) > 1:
        raise VectorFileError("holds a list of something else than equally wide rows")
    return np.stack(rows)


def _refuse_manifold() -> NoReturn:
    raise VectorFileError(
        "is a manifold of saklas, not a vector; fold it there first: saklas manifold export gguf"
    )
