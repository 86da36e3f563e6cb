"""What the study computes, cut into cells: each one fixed batch, a pure function of its spec.

A cell opens a fresh engine, so that its numbers do not depend on what was computed before, and is
computed whole or not at all. Runs in this process or on a Dask worker; needs only pyemo and the
model's file.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyemo.engine.engine import Engine
from pyemo.engine.model import Model
from pyemo.engine.model_file import ModelFile, load_model
from pyemo.engine.row import ReplyLimits, Row
from pyemo.engine.rows import run
from pyemo.engine.sampling import SamplerParams
from pyemo.engine.steering import Steering
from pyemo.extract.backend import Passage
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.extraction import extract, read_neutral
from pyemo.extract.recipe import Recipe
from pyemo.extract.recipe_texts import RecipeTexts
from pyemo.extract.stories import StoryStore, story_prompts
from pyemo.files.scratch import scratch_folder
from pyemo.jobs.store import Arrays, Result, digest
from pyemo.judges import Embedder, ForcedChoiceJudge, MiniLMJudge
from pyemo.study.states import NEUTRAL
from pyemo.study.writing_systems import SCRIPTS, script_masses, script_table
from pyemo.texts.sources import EmotionSource, Personas, Vignette, neutral_texts
from pyemo.vectors.control_vector import ControlVector

VERSION = 1
"""Part of every key: grows when a cell computes something else from the same spec."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One result to compute.

    Attributes:
        kind: the function, see :data:`COMPUTERS`.
        spec: JSON; all that the result depends on besides model and arrays.
        model: the model it runs, or None.
        arrays: such as directions.
    """

    kind: str
    spec: Mapping[str, Any]
    model: ModelFile | None = None
    arrays: Arrays = field(default_factory=dict)

    @functools.cached_property
    def key(self) -> str:
        """The hash of all it depends on, the machine's kernels and the thread count included."""
        model = self.model
        return digest(
            {
                "version": VERSION,
                "kind": self.kind,
                "spec": dict(self.spec),
                "model": None if model is None else [model.sha256, model.n_threads],
                "machine": machine(),
            },
            self.arrays,
        )

    @property
    def label(self) -> str:
        """What progress shows of it."""
        name = self.model.name if self.model else ""
        return f"{self.kind} {self.spec.get('label', '')} {name}".strip()

    def compute(self) -> Result:
        """Return the result, computed here and now.

        Raises:
            InputError: the model's file here is another one than the cell names.
            PyemoError: what the computation raises.
        """
        return COMPUTERS[self.kind](self)


@functools.cache
def machine() -> dict[str, str]:
    """Return what of this machine changes a result's bits."""
    import llama_cpp

    return {
        "llama-cpp-python": llama_cpp.__version__,
        "machine": platform.machine(),
        "kernels": llama_cpp.llama_print_system_info().decode("utf-8", "replace"),
    }


# --- hidden states ---


def class_cell(
    model: ModelFile, recipe: Recipe, source: EmotionSource | None, held_out: Sequence[str]
) -> Cell:
    """Return the cell of one class's pooled hidden states; ``source`` None is neutral.

    Its arrays: ``train`` and ``held_out``, float32 (n_texts, n_layers, n_embd) at all layers but
    the last; its values: the stories with their faults.
    """
    spec = {
        "label": NEUTRAL if source is None else source.word,
        "recipe": recipe.to_toml(),
        "source": None if source is None else dataclasses.asdict(source),
        "held_out": list(held_out),
    }
    return Cell("class", spec, model)


def _class(cell: Cell) -> Result:
    recipe = Recipe.from_toml(cell.spec["recipe"])
    source = _source(cell.spec["source"])
    name = NEUTRAL if source is None else source.word
    emotions = {} if source is None else {name: source}
    # A class of its own: no other class's stories are written for a baseline here.
    recipe = dataclasses.replace(recipe, baseline="neutral" if source is None else "emotions")
    prompts = story_prompts(recipe, emotions) if recipe.source == "stories" else []
    n_seq = max(len(prompts), 8)
    model = _model(cell)
    with scratch_folder() as folder:
        longest = max((len(model.prompt_tokens(p.text)) for p in prompts), default=0)
        n_ctx = max(4096, n_seq * (longest + recipe.max_tokens + 2))
        with _engine(cell, n_ctx=n_ctx, n_seq_max=n_seq) as engine:
            backend = EngineBackend(engine)
            layers = range(backend.source.n_layer - 1)
            texts = RecipeTexts(
                backend,
                recipe,
                emotions,
                required=[],
                fallback=False,
                folder=folder,
                tell=lambda _what, _done, _total: None,
            )
            states = {} if _lacks(recipe, source) else texts.states(layers)
            arrays = {"train": states[name]} if name in states else {}
            if cell.spec["held_out"]:
                held_out = {name: cell.spec["held_out"]}
                arrays["held_out"] = texts.read_vignettes(held_out, layers)[name]
        stories = []
        if prompts:
            store = StoryStore.open(recipe, model.file_sha256, folder)
            stories = [
                {"prompt": p.text, "text": story.text, "fault": story.fault}
                for p in prompts
                if (story := store.get(p)) is not None
            ]
    return Result({"class": name, "stories": stories}, arrays)


def _lacks(recipe: Recipe, source: EmotionSource | None) -> bool:
    """Whether a class has no texts of the recipe's kind."""
    return recipe.source == "vignettes" and source is not None and not source.vignettes


def _source(values: Mapping[str, Any] | None) -> EmotionSource | None:
    if values is None:
        return None
    personas = values["personas"]
    return EmotionSource(
        values["word"],
        tuple(values["forbidden"]),
        tuple(Vignette(**vignette) for vignette in values["vignettes"]),
        None if personas is None else Personas(**personas),
    )


def neutral_cell(model: ModelFile, texts: Sequence[str] | None = None) -> Cell:
    """Return the cell of neutral texts.

    Its arrays: ``norms`` (n_layer,), ``mean`` (n_layer, n_embd), ``pooled`` and ``last``, float32
    (n_texts, n_layer, n_embd).
    """
    return Cell("neutral", {"texts": list(texts or neutral_texts())}, model)


def _neutral(cell: Cell) -> Result:
    texts = cell.spec["texts"]
    with _engine(cell, n_ctx=4096, n_seq_max=8) as engine:
        backend = EngineBackend(engine)
        layers = range(backend.source.n_layer)
        statistics = read_neutral(backend, layers, lambda _what, _done, _total: None)
        passages = []
        for text in texts:
            tokens = tuple(backend.text_tokens(text))
            passages.append(Passage(tokens, len(tokens) - 1, len(tokens)))
        last = backend.read(passages, layers)
    arrays: Arrays = {
        "norms": statistics.norms,
        "mean": statistics.mean,
        "pooled": statistics.texts,
        "last": last,
    }
    return Result({"n_layer": len(layers)}, arrays)


# --- vectors ---


def vectors_cell(model: ModelFile, recipe: Recipe, sources: Mapping[str, EmotionSource]) -> Cell:
    """Return the cell of a model's control vectors by a recipe.

    Its arrays: ``directions`` (n_emotions, n_steered, n_embd) in residual units and ``norms``
    (n_layer,); its values: the emotions and the steered layers.
    """
    spec = {
        "recipe": recipe.to_toml(),
        "sources": {name: dataclasses.asdict(source) for name, source in sources.items()},
    }
    return Cell("vectors", spec, model)


def _vectors(cell: Cell) -> Result:
    recipe = Recipe.from_toml(cell.spec["recipe"])
    emotions = {
        name: source
        for name, values in cell.spec["sources"].items()
        if (source := _source(values)) is not None
    }
    with (
        scratch_folder() as folder,
        _engine(cell, n_ctx=8192, n_seq_max=16) as engine,
    ):
        found = extract(
            EngineBackend(engine),
            emotions,
            recipe=recipe,
            fallback_to_vignettes=True,
            stories_folder=folder,
        )
    vectors = list(found.vectors.values())
    layers = list(vectors[0].layers)
    directions = np.stack([[v.directions[layer] for layer in layers] for v in vectors])
    norms = np.array(list(vectors[0].residual_norms.values()))
    return Result(
        {"emotions": list(found.vectors), "layers": layers},
        {"directions": directions, "norms": norms},
    )


# --- replies ---


def replies_cell(
    model: ModelFile,
    prompts: Sequence[str],
    *,
    label: str,
    directions: Mapping[int, Any] | None = None,
    strength: float = 0.0,
    system: str | None = None,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> Cell:
    """Return the cell of one batch of replies, one for each prompt.

    Its values: texts, tokens, log-probabilities under the unsteered model. Its array: ``masses``,
    float32 (n_prompts, max_tokens, n_scripts), probability before sampling by script; a row of
    zeros after the end.
    """
    spec = {
        "label": label,
        "prompts": list(prompts),
        "strength": strength,
        "system": system,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    arrays = {
        f"layer{layer:04d}": np.asarray(row, np.float32)
        for layer, row in (directions or {}).items()
    }
    return Cell("replies", spec, model, arrays)


def _replies(cell: Cell) -> Result:
    spec = cell.spec
    model = _model(cell)
    tokens = [_prompt(model, prompt, spec["system"]) for prompt in spec["prompts"]]
    plain = [_prompt(model, prompt, None) for prompt in spec["prompts"]]
    n_ctx = sum(len(t) + spec["max_tokens"] + 2 for t in tokens)
    steering = Steering()
    if cell.arrays:
        rows = {int(name[5:]): row for name, row in cell.arrays.items()}
        steering = Steering({ControlVector(rows): spec["strength"]})
    with _engine(cell, n_ctx=max(512, n_ctx), n_seq_max=len(tokens)) as engine:
        written, masses = _write(engine, tokens, steering, spec)
    # Scored apart, given the prompt without the system message: how likely the unsteered model
    # finds this answer to this question.
    with _engine(cell, n_ctx=max(512, n_ctx), n_seq_max=len(tokens)) as engine:
        pairs = [(w, p) for w, p in zip(written, plain, strict=True) if w]
        scores = iter(engine.score_many(pairs) if pairs else [])
        logprobs = [next(scores).logprobs.tolist() if w else [] for w in written]
    texts = [model.detokenize(w).decode("utf-8", "replace") for w in written]
    values = {"texts": texts, "tokens": written, "logprobs": logprobs, "scripts": list(SCRIPTS)}
    return Result(values, {"masses": masses})


def _prompt(model: Model, prompt: str, system: str | None) -> list[int]:
    """Return a prompt's tokens.

    A model without a chat template gets the system message in front.
    """
    if system is not None and model.chat_template is None:
        return model.prompt_tokens(f"{system}\n\n{prompt}")
    return model.prompt_tokens(prompt, system=system)


def _write(
    engine: Engine, prompts: Sequence[list[int]], steering: Steering, spec: Mapping[str, Any]
) -> tuple[list[list[int]], np.ndarray[Any, np.dtype[np.float32]]]:
    """Decode all prompts in one batch of fixed shape, and sum up each token's scripts."""
    table = script_table(engine.model)
    masses = np.zeros((len(prompts), spec["max_tokens"], len(SCRIPTS)), np.float32)

    def weigh(row: Row) -> None:
        masses[rows.index(row), len(row.drawn)] = script_masses(row.sequence.logits(), table)

    rows: list[Row] = []
    with ExitStack() as stack:
        for i, tokens in enumerate(prompts):
            sampler = SamplerParams(temperature=spec["temperature"], seed=spec["seed"] + i)
            sequence = engine.sequence(tokens, steering=steering, sampler=sampler)
            stack.callback(sequence.close)
            rows.append(Row(sequence, ReplyLimits(spec["max_tokens"])))
        run(rows, keeps_ended=True, before_draw=weigh)
    return [[result.token for result in row.drawn if not result.is_end] for row in rows], masses


# --- judges ---


def judge_cell(
    texts: Sequence[str],
    emotions: Sequence[str],
    extra: Mapping[str, EmotionSource] | None = None,
) -> Cell:
    """Return the cell of MiniLM's reading of texts.

    Its arrays: ``scores`` (n_texts, n_emotions) and ``embeddings`` (n_texts, width), unit rows.

    Args:
        extra: a user's own emotions, by name.
    """
    sources = {name: dataclasses.asdict(source) for name, source in (extra or {}).items()}
    return Cell("minilm", {"texts": list(texts), "emotions": list(emotions), "extra": sources})


def _minilm(cell: Cell) -> Result:
    spec = cell.spec
    extra = {
        name: source
        for name, values in spec["extra"].items()
        if (source := _source(values)) is not None
    }
    judge = MiniLMJudge(_embedder(), extra=extra)
    arrays = {
        "scores": judge.scores(spec["texts"], spec["emotions"]),
        "embeddings": _embedder().embed(spec["texts"]),
    }
    return Result({}, arrays)


@functools.cache
def _embedder() -> Embedder:
    return Embedder()


def preference_cell(
    model: ModelFile, texts: Sequence[str], others: Sequence[str], emotion: str
) -> Cell:
    """Return the cell of another language model's forced choice: array ``prefers`` (n_pairs,)."""
    spec = {"label": emotion, "texts": list(texts), "others": list(others), "emotion": emotion}
    return Cell("preference", spec, model)


def _preference(cell: Cell) -> Result:
    spec = cell.spec
    with _engine(cell, n_ctx=4096, n_seq_max=1) as engine:
        judge = ForcedChoiceJudge(engine)
        return Result(
            {}, {"prefers": judge.prefers(spec["texts"], spec["others"], spec["emotion"])}
        )


COMPUTERS: Mapping[str, Callable[[Cell], Result]] = {
    "class": _class,
    "neutral": _neutral,
    "vectors": _vectors,
    "replies": _replies,
    "minilm": _minilm,
    "preference": _preference,
}


# --- models ---


def _model(cell: Cell) -> Model:
    assert cell.model is not None
    return load_model(cell.model.name, cell.model.sha256)


def _engine(cell: Cell, *, n_ctx: int, n_seq_max: int) -> Engine:
    assert cell.model is not None
    return Engine(_model(cell), n_ctx=n_ctx, n_seq_max=n_seq_max, n_threads=cell.model.n_threads)
