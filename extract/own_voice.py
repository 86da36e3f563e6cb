"""Any voice: a vector learned from a user's pairs of prompt and reply, kept only if it is real.

Owns the split by prompt, the plain replies where none are given, and the control that a vector has
to beat. The steps are in ``training``, the formats of files in ``pyemo.texts.pairs``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pyemo.errors import InputError
from pyemo.extract.descent import StepProgress
from pyemo.extract.recipe import provenance_of
from pyemo.extract.training import Trained
from pyemo.extract.voices import VoiceReply, VoiceTrainer
from pyemo.measures.bootstrap import Interval, bootstrap_interval
from pyemo.texts.pairs import LEAST_PAIRS, ReplyPair, ReplyPairs
from pyemo.texts.replies import reply_prompts
from pyemo.texts.sources import NEUTRAL
from pyemo.vectors.control_vector import ControlVector

REPLY_TOKENS = 128
"""Of a reply, no more are read: a training's memory grows with the longest."""

PLAIN_TOKENS = 48
_MOST_HELD_OUT = 16
_LEAST_HELD_OUT = 4  # by chance all four gain more in one of 16 voices that are none
_MOST_WATCHED = 12
_LEAST_WATCHED = 3
_OTHER_LANGUAGE = 1.6
_STEPS_OF_FEW = 4  # between evaluations, where each step goes through all replies


@dataclass(frozen=True, eq=False)
class OwnVoice:
    """A voice learned from pairs, and what shows that it is one.

    Attributes:
        vector: at the strength its metadata says.
        trained: how the training went.
        gain: nats per token by which replies to prompts held out become likelier, with an interval
            over these prompts.
        control: the same of the control vector, which was trained alike on shuffled labels.
        n_train, n_watch, n_held_out: prompts of each part.
        remarks: sentences on what the user should know.
    """

    vector: ControlVector
    trained: Trained
    gain: Interval
    control: Interval
    n_train: int
    n_watch: int
    n_held_out: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Split:
    train: tuple[VoiceReply, ...]
    watch: tuple[VoiceReply, ...]
    held_out: tuple[VoiceReply, ...]


def learn_voice(
    trainer: VoiceTrainer,
    name: str,
    pairs: ReplyPairs | Sequence[ReplyPair],
    progress: StepProgress | None = None,
) -> OwnVoice:
    """Return the vector of a voice that ``pairs`` are written in.

    Pairs are split by prompt: a quarter is held out for the verdict, a sixth decides when to
    stop. A pair without a plain reply gets the model's own unsteered greedy reply: it is on the
    prompt's subject and what steering begins from, so that the mean difference to it is the voice
    alone. When to stop is then decided by what bundled plain replies lose: a greedy reply is the
    likeliest there is, and any vector makes it less likely.

    The control is trained with the same seed and as many steps on the same texts, in half of which
    the reply and the plain one have changed places. What it gains comes from the subjects and from
    any text that a person wrote; a voice has to gain more.

    Args:
        name: what the vector is called; no emotion's.
        pairs: see :func:`pyemo.texts.pairs.read_pairs`; at least 12, with different prompts.
    Raises:
        InputError: too few pairs, or replies held out gain no more than under the control.
    """
    given = pairs.pairs if isinstance(pairs, ReplyPairs) else tuple(pairs)
    if len({pair.prompt for pair in given}) < LEAST_PAIRS:
        raise InputError(
            f"{len(given)} pairs on {len({pair.prompt for pair in given})} prompts; a voice takes "
            f"at least {LEAST_PAIRS} different prompts"
        )
    replies, remarks = _whole(trainer, given)
    split = _divided(replies, trainer.recipe.training.seed)
    if any(pair.plain is None for pair in given):
        split = replace(split, watch=_with_bundled_plain(split.watch))
    choices = trainer.recipe.training
    if len(split.train) <= choices.batch:
        few = min(choices.evaluate_every, _STEPS_OF_FEW)
        choices = replace(choices, evaluate_every=few)
    voice = trainer.voice(name, split.train, split.watch, progress, choices)
    rises = trainer.rises(voice.vector, split.held_out)
    steps = max(1, voice.trained.best.step)
    alike = replace(choices, steps=steps, evaluate_every=steps)
    control = trainer.voice(
        f"{name} shuffled", _shuffled(split.train, alike.seed), split.watch, training=alike
    )
    by_chance = trainer.rises(control.vector, split.held_out)
    gain, chance = bootstrap_interval(rises), bootstrap_interval(by_chance)
    _require_voice(name, gain, chance, bootstrap_interval(rises - by_chance), len(split.train))
    remarks = (
        *remarks,
        f"of {len(replies)} pairs {len(split.train)} were trained on, {len(split.watch)} said when "
        f"to stop, {len(split.held_out)} were held out",
    )
    if voice.trained.best.step == 0:
        remarks = (
            *remarks,
            "no step was better than the direction it began at, the mean difference, which seldom "
            "writes well: give more pairs, and look at its texts (`pyemo run --compare`)",
        )
    facts = provenance_of(voice.vector.metadata.recipe) | {
        "voice": name,
        "n_held_out": len(split.held_out),
        "held_out_gain": round(gain.value, 4),
        "held_out_gain_of_shuffled_labels": round(chance.value, 4),
    }
    recipe = replace(trainer.recipe, training=choices)
    metadata = replace(voice.vector.metadata, emotion="", recipe=recipe.to_toml(facts))
    return OwnVoice(
        vector=voice.vector.with_metadata(metadata),
        trained=voice.trained,
        gain=gain,
        control=chance,
        n_train=len(split.train),
        n_watch=len(split.watch),
        n_held_out=len(split.held_out),
        remarks=remarks,
    )


def _whole(
    trainer: VoiceTrainer, pairs: Sequence[ReplyPair]
) -> tuple[tuple[VoiceReply, ...], tuple[str, ...]]:
    """Return the pairs with a plain reply each, cut to length, and what is to be said of them."""
    missing = [pair.prompt for pair in pairs if pair.plain is None]
    written = dict(zip(missing, trainer.plain_replies(missing, PLAIN_TOKENS), strict=True))
    remarks = []
    if missing:
        remarks.append(
            f"{len(missing)} plain replies are the model's own, unsteered and greedy: none given"
        )
    replies = []
    n_cut = 0
    for pair in pairs:
        plain = written.get(pair.prompt, "") if pair.plain is None else pair.plain
        own, was_cut = trainer.cut(pair.reply, REPLY_TOKENS)
        n_cut += was_cut
        if plain.strip():
            plain, _ = trainer.cut(plain, REPLY_TOKENS)
            replies.append(VoiceReply(pair.prompt, own, plain, is_whole=not was_cut))
    if n_cut:
        remarks.append(f"{n_cut} replies are read to their first {REPLY_TOKENS} tokens")
    if len(replies) < len(pairs):
        remarks.append(
            f"{len(pairs) - len(replies)} prompts are left out: the model itself answers nothing"
        )
    if len(replies) < LEAST_PAIRS:
        raise InputError(
            f"the model answers {len(replies)} of {len(pairs)} prompts with text, and "
            f"{LEAST_PAIRS} are needed; give plain replies (`rejected`)"
        )
    ratio = _tokens_per_letter(trainer, [reply.own for reply in replies]) / _tokens_per_letter(
        trainer, [reply.plain for reply in replies]
    )
    if ratio > _OTHER_LANGUAGE:
        remarks.append(
            f"the replies take {ratio:.1f} times as many tokens a letter as the plain ones: a "
            "language or spelling that the model hardly knows, which no vector teaches it"
        )
    return tuple(replies), tuple(remarks)


def _tokens_per_letter(trainer: VoiceTrainer, texts: Sequence[str]) -> float:
    return sum(map(trainer.n_tokens, texts)) / max(1, sum(map(len, texts)))


def _divided(replies: Sequence[VoiceReply], seed: int) -> _Split:
    """Return the replies in three parts, the same for the same seed and replies."""
    n_held_out = min(_MOST_HELD_OUT, max(_LEAST_HELD_OUT, len(replies) // 4))
    n_watch = min(_MOST_WATCHED, max(_LEAST_WATCHED, len(replies) // 6))
    order = np.random.default_rng(seed).permutation(len(replies))
    mixed = tuple(replies[i] for i in order)
    behind = n_held_out + n_watch
    return _Split(mixed[behind:], mixed[n_held_out:behind], mixed[:n_held_out])


def _with_bundled_plain(watch: Sequence[VoiceReply]) -> tuple[VoiceReply, ...]:
    prompts = itertools.cycle(reply_prompts("watch"))
    return tuple(
        replace(reply, plain=prompt.replies[NEUTRAL], plain_prompt=prompt.text)
        for reply, prompt in zip(watch, prompts, strict=False)
    )


def _shuffled(replies: Sequence[VoiceReply], seed: int) -> tuple[VoiceReply, ...]:
    """Return the replies with own and plain changed over in half of them."""
    turned = np.random.default_rng(seed).permutation(len(replies)) < len(replies) // 2
    return tuple(
        replace(reply, own=reply.plain, plain=reply.own, is_whole=False) if turn else reply
        for reply, turn in zip(replies, turned, strict=True)
    )


def _require_voice(
    name: str, gain: Interval, chance: Interval, margin: Interval, n_train: int
) -> None:
    if gain.low > 0 and margin.low > 0:
        return
    raise InputError(
        f"no vector of {name!r} was made: replies held out become likelier by {gain.value:+.2f} "
        f"nats per token, and by {chance.value:+.2f} under a vector trained on shuffled labels "
        f"(difference {margin.value:+.2f} [{margin.low:+.2f}, {margin.high:+.2f}]); the "
        f"{n_train} replies it was trained on have no common voice that shows: give more of them, "
        "or such that differ more from plain ones"
    )
