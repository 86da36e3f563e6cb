"""Any voice: learned from pairs on a tiny model, shown on replies held out, or refused by name."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import needs_torch, open_engine
from llama_oracle import LlamaOracle
from tiny_models import TinyModel

from pyemo import ControlVector, Model, SamplerParams, Steering
from pyemo.errors import InputError, MissingExtraError, ModelLoadError
from pyemo.extract import VoiceTrainer, learn_voice
from pyemo.extract import own_voice as own_voice_module
from pyemo.extract import training_model as training_model_module
from pyemo.extract.recipe import provenance_of
from pyemo.extract.steered_tail import Frozen
from pyemo.extract.training import TrainingChoices
from pyemo.extract.training_model import require_training_room, training_bytes
from pyemo.extract.voice_recipe import VoiceRecipe
from pyemo.extract.voices import VoiceReply
from pyemo.texts.pairs import ReplyPair

pytestmark = needs_torch

# A random model's words compete only where some are likely, so the cap is far above a real one.
RECIPE = VoiceRecipe(
    training=TrainingChoices(
        steps=9, evaluate_every=3, batch=4, rate=0.08, cap=0.8, start=0.05, patience=4
    )
)
SUBJECTS = [
    "dog",
    "cat",
    "sun",
    "rain",
    "tea",
    "sea",
    "car",
    "bus",
    "tree",
    "shoe",
    "lamp",
    "door",
    "book",
    "song",
    "hat",
    "cup",
]


def voiced(n: int = 16) -> list[ReplyPair]:
    """Return pairs whose replies repeat two words that plain ones have not."""
    return [
        ReplyPair(
            f"the {s}", f"arr arr ahoy the {s} arr ahoy arr", f"well well now the {s} well now well"
        )
        for s in SUBJECTS[:n]
    ]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads gain nothing at this size and wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trainer(tiny: Callable[[str], TinyModel]) -> VoiceTrainer:
    return VoiceTrainer(tiny("llama").path, RECIPE, device="cpu")


@pytest.fixture(scope="module")
def pirate(trainer: VoiceTrainer) -> ControlVector:
    return learn_voice(trainer, "pirate", voiced()).vector


def test_a_voice_gains_on_replies_held_out_more_than_under_shuffled_labels(
    trainer: VoiceTrainer,
) -> None:
    voice = learn_voice(trainer, "pirate", voiced())
    assert voice.gain.low > voice.control.value
    assert (voice.n_train, voice.n_watch, voice.n_held_out) == (9, 3, 4)
    meta = voice.vector.metadata
    assert meta.emotion == ""  # no judge of emotions knows it
    assert meta.strength == pytest.approx(voice.trained.dose * 0.9, abs=1e-4)
    said = provenance_of(meta.recipe)
    assert said["voice"] == "pirate"
    assert said["held_out_gain"] == pytest.approx(voice.gain.value, abs=1e-4)
    assert VoiceRecipe.from_toml(meta.recipe) == RECIPE


def test_a_voice_that_replies_held_out_do_not_share_is_refused(trainer: VoiceTrainer) -> None:
    pairs = voiced()
    split = own_voice_module._divided([VoiceReply(p.prompt, p.reply, "") for p in pairs], seed=0)
    held_out = {reply.prompt for reply in split.held_out}
    other = [
        replace(pair, reply=pair.plain, plain=pair.reply) if pair.prompt in held_out else pair
        for pair in pairs
    ]
    with pytest.raises(InputError, match=r"no vector of 'mix' was made: .* shuffled labels"):
        learn_voice(trainer, "mix", other)  # type: ignore[arg-type]


def test_a_few_replies_are_looked_at_every_four_steps(
    tiny: Callable[[str], TinyModel],
) -> None:
    seldom = replace(RECIPE.training, evaluate_every=9, batch=16)
    trainer = VoiceTrainer(tiny("llama").path, replace(RECIPE, training=seldom), device="cpu")
    voice = learn_voice(trainer, "pirate", voiced())
    assert [seen.step for seen in voice.trained.watched] == [0, 4, 8, 9]
    assert VoiceRecipe.from_toml(voice.vector.metadata.recipe).training.evaluate_every == 4
    assert "of 16 pairs 9 were trained on, 3 said when to stop, 4 were held out" in voice.remarks


def test_a_training_whose_start_was_best_is_said(
    trainer: VoiceTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trainer.voice

    def idle(*given: Any, **more: Any) -> Any:
        voice = trained(*given, **more)
        best = replace(voice.trained.best, step=0)
        return replace(voice, trained=replace(voice.trained, best=best))

    monkeypatch.setattr(trainer, "voice", idle)
    voice = learn_voice(trainer, "pirate", voiced())
    assert any("no step was better" in remark for remark in voice.remarks)


def test_where_no_plain_reply_is_given_it_is_the_models_own(
    trainer: VoiceTrainer, tiny: Callable[[str], TinyModel]
) -> None:
    prompts = [pair.prompt for pair in voiced(3)]
    with open_engine(Model.load(tiny("llama").path)) as engine:
        greedy = SamplerParams(temperature=0)
        expected = [
            "".join(t.text for t in engine.generate(p, max_tokens=8, sampler=greedy)).strip()
            for p in prompts
        ]
    assert trainer.plain_replies(prompts, 8) == expected
    bare = [replace(pair, plain=None) for pair in voiced(12)]
    voice = learn_voice(trainer, "pirate", bare)
    assert any("12 plain replies are the model's own" in remark for remark in voice.remarks)


def test_the_rise_is_what_the_engine_measures(
    trainer: VoiceTrainer, tiny: Callable[[str], TinyModel], pirate: ControlVector
) -> None:
    pair = voiced()[0]
    found = trainer.rises(pirate, [VoiceReply(pair.prompt, pair.reply, "plain")])
    model = Model.load(tiny("llama").path)
    mood = Steering({pirate: pirate.recommended(model).strength})
    with open_engine(model) as engine:
        text = [(pair.reply, model.prompt_tokens(pair.prompt))]
        levels = [engine.score_many(text, steering=m)[0].mean_logprob for m in (Steering(), mood)]
    assert found[0] == pytest.approx(levels[1] - levels[0], abs=2e-3)


def test_a_voice_learns_where_replies_end_unless_they_are_cut(
    trainer: VoiceTrainer, tiny: Callable[[str], TinyModel], pirate: ControlVector
) -> None:
    model = Model.load(tiny("llama").path)
    assert model.end_token is not None
    pairs = voiced()
    replies = [VoiceReply(p.prompt, p.reply, p.plain or "", is_whole=False) for p in pairs[:12]]
    watch = [VoiceReply(p.prompt, p.reply, p.plain or "") for p in pairs[12:]]
    cut = trainer.voice("cut", replies, watch).vector
    tokens = [
        *model.prompt_tokens(pairs[12].prompt),
        *model.tokenize(pairs[12].reply, add_special=False),
    ]

    def end(mood: Steering) -> float:
        with engine.sequence(tokens, steering=mood) as sequence:
            logits = sequence.logits().astype(np.float64)
        return float(logits[model.end_token] - np.logaddexp.reduce(logits))

    with open_engine(model) as engine:
        plain = end(Steering())
        learned = end(Steering({pirate: pirate.recommended(model).strength}))
        not_learned = end(Steering({cut: cut.recommended(model).strength}))
    assert learned > plain + 0.5
    assert learned > not_learned + 0.5


def test_llama_cpps_own_adapter_writes_the_same_with_the_file_and_its_number(
    tiny: Callable[[str], TinyModel], pirate: ControlVector, tmp_path: Path
) -> None:
    path = tiny("llama").path
    pirate.save(tmp_path / "pirate.gguf")
    vector = ControlVector.load(tmp_path / "pirate.gguf")
    model = Model.load(path)
    strength = vector.recommended(model).strength
    tokens = model.prompt_tokens("the dog")
    with open_engine(model) as engine:
        reply = engine.generate(
            tokens,
            steering=Steering({vector: strength}),
            max_tokens=24,
            sampler=SamplerParams(temperature=0),
        )
        found = [token.id for token in reply]
        plain = [
            token.id
            for token in engine.generate(
                tokens, max_tokens=24, sampler=SamplerParams(temperature=0)
            )
        ]
    steer = {
        layer: np.float32(strength) * direction for layer, direction in vector.directions.items()
    }
    with LlamaOracle(path) as oracle:
        assert oracle.greedy(tokens, len(found), steer) == found
    assert found != plain


def test_a_base_model_is_trained_on_plain_text(tiny: Callable[[str], TinyModel]) -> None:
    base = VoiceTrainer(tiny("gpt2").path, RECIPE, device="cpu")
    vector = learn_voice(base, "pirate", voiced()).vector
    assert provenance_of(vector.metadata.recipe)["text"] == "prompt, blank line, reply"


def test_too_few_prompts_are_refused(trainer: VoiceTrainer) -> None:
    with pytest.raises(InputError, match="at least 12 different prompts"):
        learn_voice(trainer, "pirate", voiced(3))
    same = [replace(pair, prompt="the same") for pair in voiced()]
    with pytest.raises(InputError, match="16 pairs on 1 prompts"):
        learn_voice(trainer, "pirate", same)


def test_a_language_the_model_hardly_knows_is_said(trainer: VoiceTrainer) -> None:
    russian = [replace(pair, reply="\u044f\u0449\u0436 " * 6) for pair in voiced()]
    try:
        remarks: Sequence[str] = learn_voice(trainer, "pirate", russian).remarks
    except InputError as error:
        remarks = [str(error)]
    assert any("hardly knows" in remark for remark in remarks)


def test_long_replies_are_cut_and_that_is_said(trainer: VoiceTrainer) -> None:
    long = [replace(pair, reply=f"{pair.reply} " * 40) for pair in voiced()]
    remarks = learn_voice(trainer, "pirate", long).remarks
    assert "16 replies are read to their first 128 tokens" in remarks


# a trainer may train many voices


def n_frozen() -> int:
    """Return how many texts' states are in memory."""
    gc.collect()
    return sum(type(one) is Frozen for one in gc.get_objects())


def test_memory_does_not_grow_with_the_number_of_voices(
    tiny: Callable[[str], TinyModel],
) -> None:
    def train(trainer: VoiceTrainer, word: str) -> ControlVector:
        replies = [VoiceReply(f"the {s}", f"{word} the {s}", f"well the {s}") for s in SUBJECTS[:8]]
        return trainer.voice(word, replies[:6], replies[6:]).vector

    recipe = VoiceRecipe(training=TrainingChoices(steps=1, evaluate_every=1, batch=2))
    load = partial(VoiceTrainer, tiny("llama").path, recipe, device="cpu")
    others = n_frozen()
    one = load()
    train(one, "arr")
    after_one = n_frozen()
    for word in ("ahoy", "hush", "alas", "yippee"):
        last = train(one, word)
    assert others < n_frozen() == after_one  # the plain replies, which all share
    alone = train(load(), "yippee")
    assert all(np.array_equal(row, last.directions[il]) for il, row in alone.directions.items())


# what a training needs is said before


def test_memory_that_is_not_there_is_said_before_anything_is_loaded(
    tiny: Callable[[str], TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny("llama").path
    need = training_bytes(path, "float32", RECIPE)
    monkeypatch.setattr(training_model_module, "available_bytes", lambda: need - 1)
    monkeypatch.setattr(training_model_module, "load", None)
    with pytest.raises(ModelLoadError, match=r"training on .* takes about \d+ MB.*bfloat16"):
        VoiceTrainer(path, RECIPE, dtype="float32")
    monkeypatch.setattr(training_model_module, "available_bytes", lambda: need)
    require_training_room(path, "float32", RECIPE)


def test_bfloat16_takes_less_than_float32(tiny: Callable[[str], TinyModel]) -> None:
    path = tiny("llama").path
    assert training_bytes(path, "bfloat16", RECIPE) < training_bytes(path, "float32", RECIPE)


def test_without_torch_the_extra_is_named(
    tiny: Callable[[str], TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"needs torch.*pyemo\[extract\]"):
        VoiceTrainer(tiny("llama").path, RECIPE)


def test_a_file_transformers_cannot_read_is_named_with_what_it_can(
    tiny: Callable[[str], TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig

    def refuse(*_given: object, **_named: object) -> None:
        raise NotImplementedError("TQ1_0 is unknown")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelLoadError, match=r"cannot read .*TQ1_0 is unknown.*Q8_0.*llama"):
        VoiceTrainer(tiny("llama").path, RECIPE)
