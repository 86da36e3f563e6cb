"""Ten turns of chat under a mood: does it last, and does the text, with each way to keep the cache?

    python bench/turns.py --output bench/results/turns.json

Ways: ``kept``, as `pyemo chat` has it; ``refreshed``, where all that was said is computed again
under the mood before each turn; ``plain``, where it is computed again without the mood, so that
each reply begins on an unsteered cache. By turn: the share of replies in which the judge of voices
hears the emotion, of the emotions tried, and the share that is coherent by the rule, of those that
are long enough for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pyemo import Chat, ControlVector, Engine, Model, Steering
from pyemo.engine.sampling import STANDARD
from pyemo.judges import load_judge
from pyemo.measures.regimes import TextRegime, classify_text
from pyemo.measures.text import MIN_TOKENS, measure_text

EMOTIONS = ("angry", "sad", "enthusiastic", "loving")
WAYS = ("none", "kept", "refreshed", "plain")
MAX_TOKENS = 96
TURNS = (
    "Good morning!", "I have a long day ahead.", "My bus was late again.",
    "What should I have for lunch?", "I think I will make soup.", "My sister calls me every day.",
    "How do I tell her that I am busy?", "It has begun to rain.", "What would you do this evening?",
    "Good night.",
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A reply: where it stands, and what was found of it.

    Attributes:
        is_heard: whether the judge's likeliest emotion is the mood's; None without a mood.
        is_coherent: None where it is too short to tell.
    """

    way: str
    emotion: str
    seed: int
    turn: int
    text: str
    is_heard: bool | None
    is_coherent: bool | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of ways and turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--emotions", nargs="+", default=list(EMOTIONS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args(arguments)
    model = Model.load(chosen.model)
    judge = load_judge("voice")
    said: list[Said] = []
    with Engine(model, n_ctx=4096, n_seq_max=2, n_threads=1) as engine:
        for emotion in chosen.emotions:
            vector = ControlVector.load(emotion, model)
            mood = Steering({vector: vector.recommended(model).strength})
            for seed in range(chosen.seeds):
                for way in WAYS:
                    own = conversation(engine, way, emotion, mood, seed)
                    scores = judge.scores([one.text for one in own], tuple(chosen.emotions))
                    heard = scores.argmax(axis=1) == chosen.emotions.index(emotion)
                    pairs = zip(own, heard, strict=True)
                    said += [replace(one, is_heard=bool(hit)) for one, hit in pairs]
                    print(emotion, seed, way, heard.mean(), file=sys.stderr, flush=True)
    print_table(said)
    if chosen.output is not None:
        found = [asdict(one) for one in said]
        chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def conversation(engine: Engine, way: str, emotion: str, mood: Steering, seed: int) -> list[Said]:
    """Return the replies of one chat; what the judge hears is filled in later."""
    said = []
    steering = Steering() if way == "none" else mood
    sampler = replace(STANDARD, seed=seed)
    with Chat(engine, steering=steering, sampler=sampler, max_tokens=MAX_TOKENS) as chat:
        for turn, words in enumerate(TURNS):
            if way == "refreshed" and turn:
                chat.refresh()
            if way == "plain" and turn:
                chat.steering = Steering()
                chat.refresh()
                chat.sequence.logits()  # computed now, before the mood is back
                chat.steering = mood
            reply = chat.say(words)
            asked = list(chat.sequence.tokens)
            tokens = [token.id for token in reply if not engine.model.is_end(token.id)]
            found = None
            if len(tokens) >= MIN_TOKENS:
                likely = engine.score(tokens, given=asked).logprobs
                measured = measure_text(tokens, reply.text, likely, known=(words,))
                found = classify_text(measured) is TextRegime.COHERENT
            said.append(Said(way, emotion, seed, turn, reply.text, None, found))
    return said


def print_table(said: Sequence[Said]) -> None:
    """Print what was heard and what is coherent, by way and turns."""
    thirds = {"1-3": range(3), "4-6": range(3, 6), "7-10": range(6, 10), "all": range(10)}
    print(f"| way | what | {' | '.join(thirds)} |")
    print("|---" * (2 + len(thirds)) + "|")
    for way in WAYS:
        own = [one for one in said if one.way == way]
        for what in ("is_heard", "is_coherent"):
            shares = []
            for turns in thirds.values():
                values = [getattr(one, what) for one in own if one.turn in turns]
                known = [value for value in values if value is not None]
                shares.append(f"{sum(known) / len(known):.2f} of {len(known)}" if known else "-")
            print(f"| {way} | {what.removeprefix('is_')} | {' | '.join(shares)} |")


if __name__ == "__main__":
    sys.exit(main())
