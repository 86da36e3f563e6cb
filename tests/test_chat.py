"""A chat holds what a fresh computation of it holds, and computes only what is new."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from engines import open_engine, random_vector
from tiny_models import build_tiny

from pyemo import Chat, Engine, Model, Reply, SamplerParams, Steering
from pyemo.errors import ContextFullError, InputError, SequenceLimitError

GREEDY = SamplerParams(temperature=0)
STRIPPING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
FORGETTING = (  # as templates that leave out old thoughts
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if m['role'] == 'user' else 'said' }}<|im_end|>\n"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


def finish(reply: Reply) -> str:
    return "".join(token.text for token in reply)


@pytest.fixture
def chat(engine: Engine) -> Iterator[Chat]:
    with Chat(engine, sampler=GREEDY, max_tokens=6) as chat:
        yield chat


@pytest.fixture
def template_engine(tmp_path: Path) -> Iterator[Callable[[str], Engine]]:
    """``template_engine(jinja)`` returns an engine over the tiny llama with that chat template."""
    opened: list[Engine] = []

    def template_engine(template: str) -> Engine:
        path = build_tiny("llama", tmp_path / "model.gguf", chat_template=template).path
        opened.append(open_engine(Model.load(path)))
        return opened[-1]

    yield template_engine
    for engine in opened:
        engine.close()


def test_first_turn_is_the_prompt_of_a_single_reply(chat: Chat, engine: Engine) -> None:
    alone = finish(engine.generate("the story", sampler=GREEDY, max_tokens=6))
    assert finish(chat.say("the story")) == alone


def test_conversation_has_the_tokens_of_the_template(chat: Chat, engine: Engine) -> None:
    first = finish(chat.say("the story"))
    chat.say("and you")
    messages = [
        {"role": "user", "content": "the story"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and you"},
    ]
    text = engine.model.prompt_text(messages)
    assert (
        engine.model.detokenize(chat.sequence.tokens, special=True).decode("utf-8", "replace")
        == text
    )


def test_reply_keeps_the_tokens_that_were_drawn(chat: Chat) -> None:
    reply = chat.say("the story")
    finish(reply)
    drawn = [token.id for token in reply.tokens]
    n_prompt = chat.sequence.n_tokens - len(drawn)
    chat.say("and you")
    assert chat.sequence.tokens[n_prompt : n_prompt + len(drawn)] == drawn


def test_only_the_new_turn_is_decoded(chat: Chat) -> None:
    finish(chat.say("the story"))
    n_before = chat.sequence.n_tokens
    chat.say("and you")
    # the reply's last token was never decoded
    assert chat.sequence.n_pending == chat.sequence.n_tokens - n_before + 1


def test_turn_has_the_logits_of_a_fresh_computation(chat: Chat, engine: Engine) -> None:
    finish(chat.say("the story"))
    chat.say("and you")
    with engine.sequence(chat.sequence.tokens) as fresh:
        expected = fresh.logits()
    np.testing.assert_allclose(chat.sequence.logits(), expected, atol=1e-3 * expected.std())


def test_system_message_is_in_front(engine: Engine) -> None:
    with Chat(engine, system="you are happy", sampler=GREEDY) as chat:
        chat.say("the story")
        expected = engine.prompt_tokens("the story", system="you are happy")
        assert chat.sequence.tokens == expected


def test_a_system_message_that_is_assigned_is_that_of_the_next_turn(engine: Engine) -> None:
    with Chat(engine, sampler=GREEDY, max_tokens=6) as chat:
        said = finish(chat.say("the story"))
        chat.system = "you are happy"
        chat.say("and you")
        messages = [
            {"role": "system", "content": "you are happy"},
            {"role": "user", "content": "the story"},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "and you"},
        ]
        held = engine.model.detokenize(chat.sequence.tokens).decode("utf-8", "replace")
        assert held == re.sub(r"<\|\w+\|>", "", engine.model.prompt_text(messages))
        assert len(chat.turns) == 1
        chat.system = None
        chat.say("the end")
        held = engine.model.detokenize(chat.sequence.tokens).decode("utf-8", "replace")
        assert "you are happy" not in held


def test_interrupted_reply_stays_as_far_as_it_came(chat: Chat) -> None:
    reply = chat.say("the story")
    next(reply)
    next(reply)
    chat.say("and you")
    assert chat.turns[0].reply == reply.text
    assert len(chat.turns[0].tokens) == 2


def test_turn_without_a_token_of_reply_is_taken_back(chat: Chat) -> None:
    chat.say("never answered")
    chat.say("the story")
    assert chat.sequence.tokens == chat.sequence.engine.prompt_tokens("the story")


def test_reset_forgets_all_but_the_mood(engine: Engine) -> None:
    mood = Steering({random_vector(engine.model): 1.0})
    with Chat(engine, steering=mood, sampler=GREEDY, max_tokens=6) as chat:
        first = finish(chat.say("the story"))
        chat.reset()
        assert finish(chat.say("the story")) == first
        assert len(chat.turns) == 1


def test_mood_holds_from_the_next_token_on(chat: Chat, engine: Engine) -> None:
    finish(chat.say("the story"))
    mood = Steering({random_vector(engine.model): 3.0})
    chat.steering = mood
    chat.say("and you")
    kept = chat.sequence.logits()
    with engine.sequence(chat.sequence.tokens, steering=mood) as fresh:
        whole = fresh.logits()
    assert np.abs(kept - whole).max() > 0.01 * whole.std()


def test_refresh_puts_the_whole_conversation_under_the_mood(chat: Chat, engine: Engine) -> None:
    finish(chat.say("the story"))
    mood = Steering({random_vector(engine.model): 3.0})
    chat.steering = mood
    chat.say("and you")
    chat.refresh()
    with engine.sequence(chat.sequence.tokens, steering=mood) as fresh:
        whole = fresh.logits()
    np.testing.assert_allclose(chat.sequence.logits(), whole, atol=1e-3 * whole.std())


def test_scope_knows_past_replies_from_prompts(chat: Chat, engine: Engine) -> None:
    reply = chat.say("the story")
    finish(reply)
    n_prompt = chat.sequence.n_tokens - len(reply.tokens)
    chat.say("and you")
    tokens = chat.sequence.tokens
    mood = Steering({random_vector(engine.model): 3.0}, scope="reply")
    chat.steering = mood
    chat.refresh()
    with engine.sequence(tokens[:n_prompt], steering=mood) as fresh:
        fresh.append(tokens[n_prompt : n_prompt + len(reply.tokens)], is_reply=True)
        fresh.append(tokens[n_prompt + len(reply.tokens) :])
        expected = fresh.logits()
    np.testing.assert_allclose(chat.sequence.logits(), expected, atol=1e-3 * expected.std())


def test_full_context_leaves_out_whole_oldest_turns(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine("llama", n_ctx=256)
    with Chat(engine, system="you are happy", sampler=GREEDY, max_tokens=32) as chat:
        while not chat.n_dropped_turns:
            finish(chat.say("the story about my day"))
        kept = chat.turns
        messages = [{"role": "system", "content": "you are happy"}]
        for turn in kept:
            messages += [
                {"role": "user", "content": turn.user},
                {"role": "assistant", "content": turn.reply},
            ]
        # but for the last reply, which the template has not closed yet; control tokens that the
        # model drew itself are in no text
        text = re.sub(r"<\|\w+\|>", "", engine.model.prompt_text(messages[:-1]))
        n_prompt = chat.sequence.n_tokens - len(kept[-1].tokens)
        held = engine.model.detokenize(chat.sequence.tokens[:n_prompt]).decode("utf-8", "replace")
        assert held == text


def test_full_context_computes_the_rest_under_the_mood_of_now(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine("llama", n_ctx=256)
    with Chat(engine, sampler=GREEDY, max_tokens=32) as chat:
        while chat.sequence.n_tokens < 200:
            finish(chat.say("the story about my day"))
        mood = Steering({random_vector(engine.model): 3.0})
        chat.steering = mood
        while not chat.n_dropped_turns:
            reply = chat.say("the story about my day")
            if not chat.n_dropped_turns:
                finish(reply)
        with engine.sequence(chat.sequence.tokens, steering=mood) as fresh:
            whole = fresh.logits()
        np.testing.assert_allclose(chat.sequence.logits(), whole, atol=1e-3 * whole.std())


def test_reply_keeps_its_room_over_any_number_of_turns(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine("llama", n_ctx=256)
    with Chat(engine, sampler=SamplerParams(seed=1), max_tokens=48) as chat:
        reasons = []
        for _ in range(30):
            reply = chat.say("the story")
            finish(reply)
            reasons.append(reply.stop_reason)
    assert "context" not in reasons
    assert chat.n_dropped_turns > 0


def test_message_longer_than_the_context_is_refused_and_the_chat_goes_on(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine("llama", n_ctx=256)
    with Chat(engine, sampler=GREEDY, max_tokens=6) as chat:
        finish(chat.say("the story"))
        with pytest.raises(ContextFullError, match="shorten it"):
            chat.say("the story " * 200)
        assert len(chat.turns) == 1
        assert finish(chat.say("and you"))


def test_template_that_strips_replies_costs_nothing(
    template_engine: Callable[[str], Engine],
) -> None:
    engine = template_engine(STRIPPING)
    with Chat(engine, sampler=SamplerParams(seed=3), max_tokens=8) as chat:
        for _ in range(4):
            reply = chat.say("  the story  ")
            finish(reply)
            n_before = chat.sequence.n_tokens
            chat.say("and you")
            assert chat.sequence.n_pending <= chat.sequence.n_tokens - n_before + 1


def test_template_that_rewrites_the_past_is_followed(
    template_engine: Callable[[str], Engine],
) -> None:
    engine = template_engine(FORGETTING)
    with Chat(engine, sampler=GREEDY, max_tokens=6) as chat:
        finish(chat.say("the story"))
        chat.say("and you")
        messages = [
            {"role": "user", "content": "the story"},
            {"role": "assistant", "content": "said"},
            {"role": "user", "content": "and you"},
        ]
        assert chat.sequence.tokens == engine.prompt_tokens(messages)


def test_turns_are_left_out_where_each_sequence_has_cells_of_its_own(
    new_engine: Callable[..., Engine],
) -> None:
    engine = new_engine("llama", n_ctx=1024, n_seq_max=4, kv_unified=False)
    assert engine.n_ctx_seq == 256
    with Chat(engine, sampler=GREEDY, max_tokens=24) as chat:
        for _ in range(12):
            finish(chat.say("the happy story and you " * 4))
        assert chat.n_dropped_turns > 0
        assert chat.sequence.n_tokens <= engine.n_ctx_seq


@pytest.mark.parametrize("said", [None, 5, ["hello"], b"hello"])
def test_what_is_said_must_be_text(chat: Chat, said: object) -> None:
    with pytest.raises(InputError, match="not a text"):
        chat.say(said)  # type: ignore[arg-type]
    assert chat.turns == ()
    assert chat.sequence.n_tokens == 0


def test_base_model_continues_a_text_of_paragraphs(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine("gpt2")
    with Chat(engine, sampler=GREEDY, max_tokens=6) as chat:
        first = finish(chat.say("the story"))
        chat.say("and you")
        text = engine.model.detokenize(chat.sequence.tokens).decode()
        assert text == f"the story\n\n{first}\n\nand you\n\n"


def test_base_model_refuses_a_system_message(new_engine: Callable[..., Engine]) -> None:
    with pytest.raises(InputError, match="no chat template"):
        Chat(new_engine("gpt2"), system="you are happy")


def test_room_of_the_engine_is_asked_for(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine("llama", n_seq_max=1)
    with Chat(engine), pytest.raises(SequenceLimitError):
        Chat(engine)
    Chat(engine).close()


@pytest.mark.parametrize("max_tokens", [0, -1, 1.5])
def test_reply_without_tokens_is_refused(engine: Engine, max_tokens: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Chat(engine, max_tokens=max_tokens)
