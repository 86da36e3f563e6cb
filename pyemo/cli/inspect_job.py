"""One vector described, for people and as JSON: fields, a chart of lengths, doses, fit."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np

from pyemo import emotions
from pyemo.choices import DEFAULT_MODEL
from pyemo.cli import inspect_facts, inspect_voice, output
from pyemo.emotions import Emotion
from pyemo.engine.model import Model
from pyemo.errors import VectorError, VectorModelMismatchError
from pyemo.files import catalog, hub_vectors
from pyemo.vectors.control_vector import Calibration, ControlVector, find_vector
from pyemo.vectors.foreign import ForeignVector, read_foreign
from pyemo.vectors.metadata import FittedCondition, VectorMetadata

STRENGTHS = (0.01, 0.02)
"""Strengths whose dose is shown, beside those that the file recommends."""

_BAR_WIDTH = 24


def print_emotions(as_json: bool) -> None:
    """Print the emotions with their other names and opposites, and which have a bundled vector."""
    bundled = catalog.list_vectors(DEFAULT_MODEL)
    if as_json:
        rows = [dataclasses.asdict(emotion) for emotion in emotions.EMOTIONS.values()]
        output.print_json([{**row, "is_bundled": row["name"] in bundled} for row in rows])
        return
    for emotion in emotions.EMOTIONS.values():
        opposite = emotion.opposite or "-"
        names = ", ".join((emotion.noun, *emotion.synonyms))
        output.say(f"{emotion.name:<13} opposite: {opposite:<13} also: {names}")
    output.note(f"vectors bundled for {DEFAULT_MODEL}: {', '.join(bundled) or 'none'}")


def print_repository(repo: str, as_json: bool) -> None:
    """Print the vectors of a Hugging Face repository, each as it can be named.

    Raises:
        VectorNotFoundError: no such repository, no vectors in it, or no network.
    """
    names = [f"{hub_vectors.PREFIX}{repo}/{name}" for name in hub_vectors.moods(repo)]
    if as_json:
        output.print_json(names)
        return
    output.say("\n".join(map(output.printable, names)))


def print_vector(
    name: str,
    model_name: str | None,
    as_json: bool,
    *,
    with_voice: bool = False,
    with_facts: bool = False,
) -> None:
    """Print what the vector of a file, or a bundled one, says of itself.

    Args:
        model_name: None for none to compare with; the default model if something is measured.
        with_voice, with_facts: measure its voice, and what it does to facts, on the model too.
    Raises:
        InputError: a voice that cannot be measured; see :func:`pyemo.cli.inspect_voice.measure`.
        VectorError: no such vector, or its file is damaged.
        ModelError: the model it is to be compared with cannot be loaded.
        VectorModelMismatchError: it does not fit that model; all else was printed before.
    """
    if (with_voice or with_facts) and model_name is None:
        model_name = DEFAULT_MODEL
    model = _model(model_name)
    found = read_foreign(_path_of(name, model_name), model=model)
    path, vector = str(found.path), found.vector
    fit, mismatch = _fit(vector, model)
    measured: dict[str, inspect_voice.MeasuredVoice | inspect_facts.MeasuredFacts | None] = {}
    fits = model is not None and mismatch is None
    if with_voice:
        measured["voice"] = inspect_voice.measure(vector, model) if model and fits else None
    if with_facts:
        measured["facts"] = inspect_facts.measure(vector, model) if model and fits else None
    if as_json:
        origin = {"tool": found.tool, "notes": list(found.notes)}
        values = {key: None if one is None else one.as_json() for key, one in measured.items()}
        output.print_json({"path": path, **origin, **_described(vector), "fit": fit, **values})
    else:
        output.say("\n".join(_lines(found, fit)))
        for one in measured.values():
            if one is not None:
                output.say("\n".join(one.lines()))
    if mismatch is not None:
        raise mismatch


def _model(name: str | None) -> Model | None:
    return None if name is None else Model.load(name)


def _path_of(name: str, model_name: str | None) -> str:
    if os.path.exists(name):
        return name
    if name.lower().startswith(hub_vectors.PREFIX):
        return str(find_vector(name))
    model = catalog.resolve_model(model_name).name if model_name else DEFAULT_MODEL
    return str(find_vector(name, model))


def _fit(
    vector: ControlVector, model: Model | None
) -> tuple[dict[str, str] | None, VectorModelMismatchError | None]:
    """Return how the vector fits the model, if there is one, and the error if it does not."""
    if model is None:
        return None, None
    try:
        fit = vector.check(model)
    except VectorModelMismatchError as error:
        return {"model": model.name, "kind": "does not fit", "sentence": str(error)}, error
    return {"model": model.name, "kind": fit.kind.value, "sentence": fit.sentence}, None


def _described(vector: ControlVector) -> dict[str, Any]:
    meta = vector.metadata
    return {
        "name": vector.name,
        "emotion": meta.emotion or None,
        "format_version": meta.format_version,
        "unit": vector.unit,
        "architecture": meta.architecture or None,
        "n_embd": vector.n_embd,
        "layers": list(vector.layers),
        "source": {
            "model": meta.source_model or None,
            "sha256": meta.source_sha256 or None,
            "weights_fingerprint": meta.weights_fingerprint or None,
            "chat_template_sha256": meta.chat_template_sha256 or None,
        },
        "recipe": meta.recipe or None,
        "strength": meta.strength,
        "calibrations": [_calibration(entry) for entry in meta.calibrations],
        "condition": None if meta.condition is None else _condition(meta.condition),
        "system_line": meta.system_line or None,
        "line_calibrations": [_calibration(entry) for entry in meta.line_calibrations],
        "lengths": _lengths(vector),
        "residual_norms": list(meta.residual_norms),
        "neutral_projections": list(meta.neutral_projections),
        "own_projections": list(meta.own_projections),
        "doses": [{"strength": s, "dose": dose} for s, dose in _doses(vector).items()],
    }


def _calibration(entry: Calibration) -> dict[str, Any]:
    return {**dataclasses.asdict(entry), "evidence": json.loads(entry.evidence)}


def _condition(found: FittedCondition) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "evidence": json.loads(found.evidence)}


def _lengths(vector: ControlVector) -> list[float]:
    rows = vector.directions.values()
    return [float(np.linalg.norm(row.astype(np.float64))) for row in rows]


def _doses(vector: ControlVector) -> dict[float, float]:
    """Return strength -> dose, empty where the vector does not say what a dose is measured by."""
    meta = vector.metadata
    own = [entry.strength for entry in meta.calibrations]
    if meta.strength is not None:
        own.append(meta.strength)
    try:
        return {s: vector.dose(s) for s in sorted({*STRENGTHS, *own})}
    except VectorError:  # raw, without residual norms
        return {}


# --- for people ---


def _lines(found: ForeignVector, fit: dict[str, str] | None) -> list[str]:
    vector = found.vector
    meta = vector.metadata
    lines = [
        f"{vector.name}  ({output.printable(str(found.path))})",
        f"written by   {found.tool}",
        *_fields(vector),
        *_recipe(meta),
        *_trained(meta),
        *(_calibrated(entry) for entry in meta.calibrations),
        *([] if meta.condition is None else [_fitted(meta.condition)]),
        *_line(meta),
        *_chart(vector),
        *_dose_lines(vector),
    ]
    lines += [f"note         {output.printable(note)}" for note in found.notes]
    return [*lines, f"fit          {fit['sentence']}"] if fit is not None else lines


def _fields(vector: ControlVector) -> list[str]:
    meta = vector.metadata
    unit = "raw: a strength is a plain factor; `pyemo rescale` gives it a meaning"
    if vector.unit == "residual":
        unit = f"residual: strength 0.02 adds {_share(vector)}"
    layers = f"{vector.layers[0]} to {vector.layers[-1]}"
    rows = {
        "emotion": _emotion(emotions.EMOTIONS.get(meta.emotion), meta.emotion),
        "unit": unit,
        "directions": f"{len(vector.layers)}, of layers {layers}, {vector.n_embd} wide",
        "architecture": meta.architecture,
        "source": meta.source_model,
        "file": meta.source_sha256,
        "weights": meta.weights_fingerprint,
        "template": meta.chat_template_sha256,
    }
    return [f"{label:<12} {value or 'not known'}" for label, value in rows.items()]


def _share(vector: ControlVector) -> str:
    """Return what strength 0.02 adds, as a share of the residual norms."""
    norms = vector.residual_norms
    shares = [
        length / norms[layer]
        for layer, length in zip(vector.layers, _lengths(vector), strict=True)
        if layer in norms
    ]
    if not shares or max(shares) - min(shares) < 0.02 * max(shares):
        return "2% of the residual norm at each layer"
    low, high = 2 * min(shares), 2 * max(shares)
    return f"{low:.2g}% to {high:.2g}% of the residual norm, by layer"


def _emotion(emotion: Emotion | None, name: str) -> str:
    if emotion is None:
        return name
    opposite = f"; its opposite: {emotion.opposite}" if emotion.opposite else ""
    return f"{name} ({', '.join((emotion.noun, *emotion.synonyms))}){opposite}"


def _recipe(meta: VectorMetadata) -> list[str]:
    if not meta.recipe:
        return ["recipe       not known"]
    first, *rest = meta.recipe.strip().splitlines()
    return [f"recipe       {first}", *(f"{'':<12} {line}" for line in rest)]


def _trained(meta: VectorMetadata) -> list[str]:
    """Return the line of the strength that is taken where no calibration says another."""
    if meta.strength is None:
        return []
    return [f"strength     {meta.strength:g}, which its training recommends"]


def _line(meta: VectorMetadata) -> list[str]:
    """Return the lines of the system message that goes with the vector, and of its strengths."""
    if not meta.system_line:
        return []
    found = [f"{_calibrated(entry)}, with the system line" for entry in meta.line_calibrations]
    return [f"system line  {meta.system_line!r}; --system-line on", *found]


def _calibrated(entry: Calibration) -> str:
    low, high = entry.window
    return (
        f"calibrated   strength {entry.strength:g}, window {low:g} to {high:g}, on "
        f"{entry.model_name} ({entry.sampler}, {entry.n_tokens} tokens)"
    )


def _fitted(found: FittedCondition) -> str:
    evidence = json.loads(found.evidence)
    f1 = evidence.get("f1") if isinstance(evidence, dict) else None
    known = f"; F1 {f1:.3f} on texts that were held out" if isinstance(f1, float) else ""
    return f"condition    holds {found.side} {found.threshold:+.4g} at layer {found.layer}{known}"


def _chart(vector: ControlVector) -> list[str]:
    """Return a bar for each layer: its direction's length, beside the residual norm if known."""
    norms, projections = vector.residual_norms, vector.neutral_projections
    own = vector.own_projections
    lengths = dict(zip(vector.layers, _lengths(vector), strict=True))
    longest = max(lengths.values())
    lines = [
        f"{'layer':<12} {'length of the direction':<{_BAR_WIDTH + 9}} "
        + ("residual norm  neutral projection" if norms else "")
        + ("  its own texts'" if own else "")
    ]
    for layer, length in lengths.items():
        filled = output.bar(length / longest if longest else 0.0, _BAR_WIDTH)
        norm = f"{output.short(norms[layer]):>13}" if norms else ""
        neutral = f"{output.short(projections[layer]):>20}" if projections else ""
        texts = f"{output.short(own[layer]):>16}" if own else ""
        lines.append(f"{layer:>5}        {filled} {output.short(length):>8} {norm}{neutral}{texts}")
    return [line.rstrip() for line in lines]


def _dose_lines(vector: ControlVector) -> list[str]:
    doses = _doses(vector)
    if not doses:
        return ["dose         not known: the vector does not say the model's residual norms"]
    marks = {entry.strength: " (calibrated)" for entry in vector.metadata.calibrations}
    if vector.metadata.strength is not None:
        marks.setdefault(vector.metadata.strength, " (trained)")
    parts = [
        f"{strength:g}: {dose:.1%}{marks.get(strength, '')}" for strength, dose in doses.items()
    ]
    return [f"dose         {', '.join(parts)} of the last layer's residual norm"]
