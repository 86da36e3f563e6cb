"""``pyemo extract``: control vectors of emotions, made on the model they will steer."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyemo.choices import DTYPES, LANGUAGES, DType
from pyemo.cli import output
from pyemo.cli.job_options import Workers, workers_options
from pyemo.cli.options import debug_option, json_option, model_option, threads_option
from pyemo.cli.progress_bars import progress_bars
from pyemo.cli.quality_text import quality_lines

if TYPE_CHECKING:
    from pyemo.extract.backend import Backend
    from pyemo.extract.extraction import VectorSet
    from pyemo.extract.quality import SetQuality
    from pyemo.extract.recipe import Recipe
    from pyemo.extract.recipe_texts import Progress
    from pyemo.texts.sources import EmotionSource

BACKENDS = ("auto", "engine", "transformers")


@dataclass(frozen=True)
class BackendOptions:
    """What computes the hidden states, and how."""

    kind: str
    model: str
    device: str
    dtype: DType
    parallel: int
    threads: int | None

    @property
    def is_transformers(self) -> bool:
        """Whether transformers is meant: named, or the only one that takes this model or device."""
        if self.kind != "auto":
            return self.kind == "transformers"
        path = Path(self.model).expanduser()
        is_repository = "/" in self.model and ":" not in self.model and not path.is_file()
        return path.is_dir() or is_repository or self.device not in ("auto", "cpu")

    @contextlib.contextmanager
    def open(self, recipe: Recipe) -> Iterator[Backend]:
        """Yield the back end, loaded."""
        from pyemo.errors import InputError

        if self.parallel < 1:
            raise InputError(f"--parallel {self.parallel} must be 1 or more texts")
        if self.is_transformers:
            yield self._transformers()
            return
        if self.device not in ("auto", "cpu"):
            raise InputError(
                f"the engine back end computes on the CPU, not on {self.device!r}; leave --device "
                "away, or use --backend transformers"
            )
        from pyemo.extract.engine_backend import EngineBackend

        with EngineBackend.open(
            self.model, recipe, parallel=self.parallel, n_threads=self.threads
        ) as backend:
            yield backend

    def _transformers(self) -> Backend:
        from pyemo.extract.transformers_backend import TransformersBackend

        backend = TransformersBackend.load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.parallel,
        )
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        return backend


@click.command(short_help="Make the control vectors of emotions.")
@click.argument("emotions", nargs=-1, metavar="[EMOTION]...")
@click.option("--all", "is_all", is_flag=True, help="All 20 emotions, and those of --emotions.")
@click.option(
    "--output",
    "-o",
    "target",
    required=True,
    metavar="PATH",
    help="A file that ends in .gguf for one emotion, or a folder for EMOTION.gguf of each.",
)
@click.option("--force", is_flag=True, help="Replace vectors that another tool wrote, too.")
@click.option(
    "--recipe",
    "-r",
    metavar="NAME_OR_FILE",
    help="How vectors are made. trained learns from replies to write an emotion: minutes for "
    "each, needs torch. reading compares texts about emotions: seconds, best for gauges. Others: "
    "paper-generation, paper-comprehension, anthropic, contrast, or a TOML file.  [default: "
    "trained; reading with --emotions]",
)
@click.option(
    "--emotions", "own", metavar="FILE", help="Your own emotions: a TOML file; docs/extraction.md."
)
@click.option(
    "--replies",
    metavar="FILE",
    help="Make the vector of any voice instead, from 12 or more pairs of prompt and reply in it, "
    "JSONL or TOML; "
    "docs/voices.md.",
)
@click.option(
    "--cache",
    "is_cache",
    is_flag=True,
    help="Make cache vectors instead, learned from replies, or with -r contrast from pairs of "
    "prompts; docs/cache-steering.md.",
)
@click.option(
    "--language",
    type=click.Choice(LANGUAGES),
    help="Make the direction of a language instead; docs/methods.md.",
)
@model_option
@click.option(
    "--backend",
    "kind",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="What runs the model: the engine for GGUF files, transformers for Hugging Face models and "
    "GPUs.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="For transformers: auto, cpu, cuda, cuda:1, mps.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="For transformers: number type of the weights. bfloat16 trains in two thirds of the time "
    "where the processor has it.",
)
@click.option(
    "--parallel",
    type=int,
    default=16,
    show_default=True,
    metavar="N",
    help="Texts read in one batch; fewer take less memory.",
)
@threads_option
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help="Seed of the stories or of the training.  [default: the recipe's]",
)
@click.option(
    "--stories",
    metavar="FOLDER",
    help="Where the model's stories are kept.  [default: pyemo's cache]",
)
@click.option(
    "--fallback",
    is_flag=True,
    help="Where the model writes no usable stories of an emotion, read pyemo's own short scenes "
    "(vignettes) of it.",
)
@click.option(
    "--allow-no-chat-template",
    is_flag=True,
    help="Let a model that has no chat template continue the recipe's instructions as plain text.",
)
@click.option(
    "--calibrate",
    "is_calibrated",
    is_flag=True,
    help="Then find each vector's strengths on the model, as `pyemo calibrate` does.",
)
@workers_options
@json_option
@debug_option
def extract(
    emotions: tuple[str, ...],
    is_all: bool,
    target: str,
    force: bool,
    recipe: str | None,
    own: str | None,
    replies: str | None,
    is_cache: bool,
    language: str | None,
    model: str,
    kind: str,
    device: str,
    dtype: DType,
    parallel: int,
    threads: int | None,
    seed: int | None,
    stories: str | None,
    fallback: bool,
    allow_no_chat_template: bool,
    is_calibrated: bool,
    workers: Workers,
    as_json: bool,
) -> None:
    """Make the control vectors of EMOTIONs on a model, and say what was measured of them.

    The default recipe learns to write an emotion, from replies that come with pyemo. The others
    read texts about emotions; some let the model write them, as stories. Stories are kept: a run
    that was stopped, or another recipe, goes on from them. Where a recipe compares an emotion with
    the mean over all of them, the texts of all 20 are read, whichever were asked for.

    \b
    Example:
      pyemo extract anger -o anger.gguf
      pyemo extract --all -m my-model.gguf -o my-vectors --workers 2
      pyemo extract --all -r reading -o for-gauges
      pyemo extract --emotions jealous.toml -r paper-generation -o my-vectors
      pyemo extract --replies pirate.jsonl -o pirate.gguf
      pyemo extract anger --cache -o angry-cache.gguf
      pyemo extract --language zh -o zh.gguf
    """
    from pyemo.cli.extract_voices import extract_emotions, extract_own, voice_recipe
    from pyemo.extract.extraction import extract as extract_vectors
    from pyemo.extract.recipe import READING, Recipe
    from pyemo.extract.voice_recipe import VOICE_RECIPE
    from pyemo.vectors.file import check_target

    began = time.monotonic()
    if is_cache and language is None:
        from pyemo.cli.extract_cache import CacheExtraction, check_way
        from pyemo.vectors.cache_file import check_target as check_cache_target

        if replies or own or is_calibrated or not workers.is_here:
            raise click.UsageError(
                "--cache is for the 20 built-in emotions, here: leave out --replies, --emotions, "
                "--calibrate, --workers and --scheduler"
            )
        making = CacheExtraction(check_way(recipe), model, device, dtype, threads, seed)
        names = list(_asked(emotions, is_all, {}))
        making.run(_targets(names, target, check_cache_target), as_json)
        return
    checked = functools.partial(check_target, force=force)
    if language is not None:
        from pyemo.cli.extract_language import extract_language

        if emotions or is_all or own or replies or is_cache or is_calibrated or not workers.is_here:
            raise click.UsageError(
                "--language is a direction of its own: leave out emotions, --all, --emotions, "
                "--replies, --cache, --calibrate, --workers and --scheduler"
            )
        (path,) = _targets([language], target, checked).values()
        extract_language(language, path, model, threads, as_json, force=force)
        return
    if replies is not None:
        if emotions or is_all or own or is_calibrated or kind == "engine" or not workers.is_here:
            raise click.UsageError(
                "--replies is one voice of its own: leave out emotions, --all, --emotions, "
                "--calibrate, --backend engine, --workers and --scheduler"
            )
        of_own = voice_recipe(recipe or VOICE_RECIPE, seed)
        if of_own is None:
            raise click.UsageError(f"--recipe {recipe} reads no replies; leave it out")
        (path,) = _targets([Path(replies).stem], target, checked).values()
        extract_own(of_own, replies, path, model, device, dtype, threads, force, as_json)
        return
    recipe = recipe or (READING if own else VOICE_RECIPE)
    of_voices = voice_recipe(recipe, seed)
    if of_voices is not None:
        _check_training(recipe, kind, own)
        paths = _targets(list(_asked(emotions, is_all, {})), target, checked)
        if is_calibrated:
            _check_calibration(BackendOptions("auto", model, device, dtype, 1, threads), {})
        extract_emotions(
            of_voices,
            paths,
            model,
            device,
            dtype,
            threads,
            workers,
            as_json,
            force=force,
            is_calibrated=is_calibrated,
        )
        return
    if not (workers.is_here or is_calibrated):
        raise click.UsageError(
            f"recipe {recipe} reads all emotions' texts in one process; --workers and --scheduler "
            "are for the recipe trained, and for --calibrate"
        )
    chosen = Recipe.load(recipe)
    if seed is not None:
        chosen = replace(chosen, seed=seed)
    mine = _own_emotions(own)
    asked = _asked(emotions, is_all, mine)
    paths = _targets(list(asked), target, checked)
    options = BackendOptions(kind, model, device, dtype, parallel, threads)
    if is_calibrated:
        _check_calibration(options, mine)
    with options.open(chosen) as backend, progress_bars() as tell:
        try:
            vectors = extract_vectors(
                backend,
                asked,
                recipe=chosen,
                among=_built_in() | mine,
                fallback_to_vignettes=fallback,
                allow_no_chat_template=allow_no_chat_template,
                stories_folder=None if stories is None else Path(stories).expanduser(),
                progress=tell,
            )
        except KeyboardInterrupt:
            if chosen.source == "stories":
                output.note("Finished stories are kept; the same command goes on.")
            raise
        for name, path in paths.items():
            vectors.vectors[name].save(path, force=force)
        quality = _quality(backend, vectors, mine, tell)
    calibrations = None
    if is_calibrated:
        from pyemo.cli.calibrate import calibrate_files

        calibrations = calibrate_files(list(paths.values()), model, threads, workers, as_json)
    seconds = time.monotonic() - began
    _report(vectors, quality, paths, backend, calibrations, seconds, as_json)


def _check_training(recipe: str, kind: str, own: str | None) -> None:
    """Refuse what a recipe that learns from replies cannot be mixed with."""
    if kind == "engine":
        raise click.UsageError(
            f"recipe {recipe} is trained by transformers, and the engine trains nothing: leave "
            "out --backend, or take -r reading, which makes vectors for gauges"
        )
    if own is not None:
        raise click.UsageError(
            f"recipe {recipe} learns from replies, and --emotions has texts about emotions: leave "
            "out -r, or give replies (--replies)"
        )


def _check_calibration(options: BackendOptions, mine: Mapping[str, EmotionSource]) -> None:
    """Refuse what cannot be calibrated before anything is extracted."""
    from pyemo.errors import InputError
    from pyemo.judges import load_judge

    if options.is_transformers:
        raise InputError(
            "--calibrate needs the GGUF file that will run, and this model is transformers'; "
            "calibrate the vectors afterwards: pyemo calibrate FOLDER -m FILE.gguf"
        )
    if mine:
        raise InputError(
            f"--calibrate judges texts by the 20 built-in emotions, not by {', '.join(mine)}; "
            "leave it out"
        )
    load_judge()  # if it is not installed, this is the time to say so


def _own_emotions(path: str | None) -> dict[str, EmotionSource]:
    from pyemo.texts.sources import load_emotions_file

    return {} if path is None else load_emotions_file(Path(path).expanduser())


def _built_in() -> dict[str, EmotionSource]:
    from pyemo.emotions import EMOTIONS
    from pyemo.texts.sources import emotion_source

    return {name: emotion_source(name) for name in EMOTIONS}


def _asked(
    names: tuple[str, ...], is_all: bool, mine: Mapping[str, EmotionSource]
) -> dict[str, EmotionSource]:
    """Return what is to be extracted; a file's own emotion goes before a built-in one."""
    from pyemo.emotions import resolve
    from pyemo.errors import InputError

    if is_all:
        if names:
            raise click.UsageError("give emotions by name, or --all")
        return _built_in() | dict(mine)
    if not names and not mine:
        raise click.UsageError(
            "name an emotion, or give --all; `pyemo inspect --emotions` lists 20"
        )
    asked = {}
    for name in names or tuple(mine):
        word = name.strip().casefold()
        if word in mine:
            asked[word] = mine[word]
            continue
        try:
            word = resolve(name)
        except InputError as error:
            if not mine:
                raise
            raise InputError(f"{error} The file has {', '.join(mine)}.") from None
        asked[word] = mine.get(word) or _built_in()[word]
    return asked


def _targets(names: list[str], target: str, check: Callable[[Path], Path]) -> dict[str, Path]:
    """Return emotion -> file to write, in a folder that can be written to.

    Args:
        check: refuses a file that is not to be replaced.
    """
    from pyemo.files.local import check_folder_writable

    path = Path(target).expanduser()
    if path.suffix.lower() != ".gguf":
        check_folder_writable(path)
        paths = {name: path / f"{name}.gguf" for name in names}
        for file in paths.values():
            check(file)
        return paths
    if len(names) > 1:
        raise click.UsageError(
            f"{len(names)} emotions need a folder, and {target} names one file; give -o FOLDER"
        )
    check_folder_writable(path.parent)
    check(path)
    return {names[0]: path}


def _quality(
    backend: Backend, vectors: VectorSet, mine: Mapping[str, EmotionSource], tell: Progress
) -> SetQuality | None:
    """Return the quality of all emotions that were read; None for one alone."""
    from pyemo.extract.quality import measure
    from pyemo.texts.sources import NEUTRAL

    if len(set(vectors.states) - {NEUTRAL}) < 2:
        return None
    return measure(backend, vectors, mine, progress=tell)


def _report(
    vectors: VectorSet,
    quality: SetQuality | None,
    paths: Mapping[str, Path],
    backend: Backend,
    calibrations: list[dict[str, Any]] | None,
    seconds: float,
    as_json: bool,
) -> None:
    if as_json:
        value: dict[str, Any] = {
            "vectors": {name: str(path) for name, path in paths.items()},
            "recipe": vectors.recipe.name,
            "backend": backend.name,
            "source_model": backend.source.name,
            "unused_stories": {name: dict(faults) for name, faults in vectors.faults.items()},
            "vignettes_instead_of_stories": sorted(vectors.replaced),
            "left_out_of_mean": sorted(vectors.left_out),
            "quality": None if quality is None else quality.to_json(),
            "calibrations": calibrations,
            "seconds": round(seconds, 1),
        }
        output.print_json(value)
        return
    for name, path in paths.items():
        layers = vectors.vectors[name].layers
        output.say(f"{path}: {name}, layers {layers[0]}:{layers[-1] + 1}")
    if quality is not None:
        output.say()
        for line in quality_lines(quality):
            output.say(line)
    for remark in _remarks(vectors, quality, paths):
        output.note(remark)
    output.note(
        f"recipe {vectors.recipe.name} on {backend.source.name} ({backend.name}), {seconds:.0f} s"
    )


def _remarks(
    vectors: VectorSet, quality: SetQuality | None, paths: Mapping[str, Path]
) -> Iterator[str]:
    if quality is not None and len(quality.emotions) > len(paths):
        yield (
            f"{' and '.join(paths)} relative to the mean over {len(quality.emotions)} emotions; "
            "the numbers above are of all of them"
        )
    for name, faults in sorted(vectors.faults.items()):
        unused = ", ".join(f"{n} {fault}" for fault, n in sorted(faults.items()))
        instead = "; its vignettes were read instead" if name in vectors.replaced else ""
        left_out = "; left out of the mean over emotions" if name in vectors.left_out else ""
        yield f"{name}: stories not used: {unused}{instead}{left_out}"
