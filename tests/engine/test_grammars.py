"""Replies that follow a grammar: which tokens may come, against llama.cpp's sampler, and when they
end; and texts that are no grammar."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
from engines import not_under_address_sanitizer, open_engine, random_vector
from llama_oracle import LlamaOracle
from tiny_models import TinyModel

from pyemo import Engine, Grammar, Model, ReplyLimits, Request, SamplerParams, Scheduler, Steering
from pyemo.engine import memory
from pyemo.errors import InputError
from pyemo.guard import Guard

PROMPT = "the happy story"
WORDS = 'root ::= ("you" | "me") (" and " ("me" | "story"))*'
GRAMMARS = {
    "words": (WORDS, ["", "you", "me and ", "you and st", "me and story"]),
    "set": ("root ::= [a-f]+ [^a-f\\n]{2,3} .?", ["", "abc", "abcx", "abcxyz", "fé", "fé日本"]),
    "empty parts": ('root ::= ("a"? "b"?)* "c"', ["", "a", "ab", "abba"]),
    "recursion": ('root ::= "(" root* ")" | "[" root "]"', ["", "((", "[[()]", "(()[()])"]),
    "escapes": (r'root ::= "\"\\\n" [\x41-\u00e9\]\-] # note', ["", '"', '"\\\n']),
    "lines": (
        'root ::=\n  item+\nitem ::= "- " (\n [^\\n]\n | "é")+ "\\n"',
        ["", "- é", "- a\n- "],
    ),
    "ambiguous": ('root ::= ("a" | "aa" | "aaa")+ "b"', ["", "aaaaaa", "aaaaaaaaaaaaaaaa"]),
}
cases = pytest.mark.parametrize(
    ("grammar", "said"),
    [(text, said) for text, saids in GRAMMARS.values() for said in saids],
    ids=[f"{name}-{i}" for name, (_, saids) in GRAMMARS.items() for i in range(len(saids))],
)
GREEDY = SamplerParams(temperature=0)


@pytest.fixture(scope="module")
def model_file(tiny: Callable[[str], TinyModel]) -> TinyModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def engine(model_file: TinyModel) -> Iterator[Engine]:
    with open_engine(Model.load(model_file.path)) as engine:
        yield engine


@pytest.fixture(scope="module")
def oracle(model_file: TinyModel) -> Iterator[LlamaOracle]:
    with LlamaOracle(model_file.path) as oracle:
        yield oracle


def under(grammar: str, **values: object) -> SamplerParams:
    return SamplerParams(**{"temperature": 3.0, "grammar": Grammar(grammar), **values})  # type: ignore[arg-type]


def is_begun(data: bytes) -> bool:
    """Whether the bytes are the beginning of a text in UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


# --- which tokens may come ---


@cases
def test_the_tokens_that_may_come_are_those_of_llama_cpp(
    engine: Engine, oracle: LlamaOracle, grammar: str, said: str
) -> None:
    model = engine.model
    tokens = model.tokenize(said, add_special=False)
    found = Grammar(grammar).allowed(model, tokens)
    # llama.cpp lets control tokens pass where their names fit, and bytes that no text has.
    sound = [
        is_begun(said.encode() + piece) and (bool(piece) or model.is_end(i))
        for i, piece in enumerate(map(model.native.piece, range(model.n_vocab)))
    ]
    expected = oracle.allowed(grammar, tokens) & sound
    assert found.tolist() == expected.tolist()
    assert found.any()


def test_half_a_character_is_gone_on_with(engine: Engine) -> None:
    """A token may end within a character; only its other bytes may follow."""
    model = engine.model
    first, second = "é".encode()
    allowed = Grammar('root ::= "é" | "ü"').allowed(model, [model.native.byte_token(first)])
    ends = {model.native.byte_token(byte) for byte in (second, "ü".encode()[1])}
    assert set(allowed.nonzero()[0].tolist()) == ends


def test_tokens_that_break_the_grammar_are_refused_by_name(engine: Engine) -> None:
    tokens = engine.model.tokenize("your", add_special=False)
    with pytest.raises(InputError, match="not what its grammar allows"):
        Grammar(WORDS).allowed(engine.model, tokens)


# --- replies ---


@pytest.mark.parametrize("temperature", [0, 0.8, 5.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_reply_is_what_its_grammar_asks_for(
    engine: Engine, temperature: float, seed: int
) -> None:
    grammar = 'root ::= "I feel " ("calm" | "sad" | "happy")'
    params = under(grammar, temperature=temperature, seed=seed)
    reply = engine.generate(PROMPT, sampler=params)
    assert "".join(token.text for token in reply) in {
        "I feel calm",
        "I feel sad",
        "I feel happy",
    }
    assert reply.stop_reason == "end"


def test_it_ends_where_the_grammar_may_end_and_the_model_wants_to(engine: Engine) -> None:
    """A grammar that may go on for ever does not keep the model from ending its reply."""
    ended = 0
    for seed in range(40):
        params = under("root ::= [ab]*", seed=seed)
        reply = engine.generate(PROMPT, max_tokens=8, sampler=params)
        list(reply)
        assert set(reply.text) <= {"a", "b"}
        ended += reply.stop_reason == "end"
    assert 0 < ended < 40


def test_a_grammar_of_anything_changes_no_token(engine: Engine) -> None:
    params = SamplerParams(temperature=1.5, seed=3)
    free = [token.id for token in engine.generate(PROMPT, max_tokens=40, sampler=params)]
    held = SamplerParams(temperature=1.5, seed=3, grammar=Grammar("root ::= .*"))
    ids = [token.id for token in engine.generate(PROMPT, max_tokens=40, sampler=held)]
    n_text = len(bytes_until_no_text(engine, free))
    assert n_text > 0
    assert ids[:n_text] == free[:n_text]


def bytes_until_no_text(engine: Engine, tokens: list[int]) -> list[int]:
    """Return the tokens before the first with which the bytes are no UTF-8 any more."""
    data = b""
    for i, token in enumerate(tokens):
        piece = engine.model.native.piece(token)
        if not (piece or engine.model.is_end(token)) or not is_begun(data + piece):
            return tokens[:i]
        data += piece
    return tokens


def test_log_probabilities_are_those_of_the_model_without_the_grammar(engine: Engine) -> None:
    tokens = list(engine.generate(PROMPT, sampler=under(WORDS, temperature=0), n_top=1))
    with engine.sequence(PROMPT, sampler=GREEDY) as sequence:
        expected = sequence.score_next([token.id for token in tokens])[-len(tokens) :]
    assert [token.logprob for token in tokens] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_fork_goes_on_in_the_grammar(engine: Engine) -> None:
    with engine.sequence(PROMPT, sampler=under(WORDS)) as sequence:
        sequence.step()
        with sequence.fork() as twin:
            for _ in range(6):
                assert twin.step().id == sequence.step().id


def test_taking_tokens_back_takes_the_grammar_back(engine: Engine) -> None:
    params = under('root ::= "I feel calm and happy and sad"')
    with engine.sequence(PROMPT, sampler=params) as sequence:
        first = [sequence.step().id for _ in range(8)]
        for n in (1, 3, 8):
            sequence.rollback(n)
            assert [sequence.step().id for _ in range(n)] == first[-n:]


def test_each_reply_of_a_conversation_begins_the_grammar_anew(engine: Engine) -> None:
    with engine.sequence(PROMPT, sampler=under('root ::= "me" | "you"')) as sequence:
        for _ in range(2):
            reply = sequence.generate()
            list(reply)
            assert reply.text in ("me", "you")
            sequence.append(engine.model.tokenize(" and", add_special=False))


def test_rows_of_a_batch_follow_each_its_own(engine: Engine) -> None:
    samplers = [under('root ::= "me"'), under("root ::= [0-9]{6}"), SamplerParams(seed=1)]
    replies = engine.generate_many([PROMPT] * 3, sampler=samplers, max_tokens=12)
    assert replies[0].text == "me"
    assert replies[1].text.isdecimal()
    assert len(replies[1].text) == 6
    alone = engine.generate(PROMPT, sampler=samplers[1], max_tokens=12)
    assert "".join(token.text for token in alone) == replies[1].text


def test_the_scheduler_writes_what_the_engine_does(engine: Engine) -> None:
    """Cancelled replies, and those beside it, change nothing."""
    tokens = engine.prompt_tokens(PROMPT)
    params = under(WORDS, seed=5)
    expected = "".join(token.text for token in engine.generate(tokens, sampler=params))
    with Scheduler(engine) as scheduler:
        for _ in range(2):  # the second goes on from what the first has read
            limits = ReplyLimits(128)
            ticket = scheduler.submit(Request(tokens, limits, sampler=params))
            assert ticket.wait(60).text == expected
            assert ticket.stop_reason == "end"


def test_a_grammar_that_no_token_meets_ends_its_own_reply_only(engine: Engine) -> None:
    tokens = engine.prompt_tokens(PROMPT)
    never = SamplerParams(grammar=Grammar(r'root ::= "a" "\x00" "b" [\uD800-\uDFFF]'))
    with Scheduler(engine) as scheduler:
        bad = scheduler.submit(Request(tokens, ReplyLimits(20), sampler=never))
        good = scheduler.submit(Request(tokens, ReplyLimits(20), sampler=under(WORDS)))
        assert good.wait(60).text
        with pytest.raises(InputError, match="no token of the model can go on"):
            bad.wait(60)


def test_a_guarded_reply_follows_it_too(engine: Engine) -> None:
    mood = Steering({random_vector(engine.model): 1.0})
    params = under('root ::= (" and" | " the")+', temperature=0)
    reply = Guard().generate(engine, PROMPT, steering=mood, sampler=params, max_tokens=60)
    list(reply)
    assert reply.events
    assert not reply.text.replace(" and", "").replace(" the", "")


def test_a_grammar_is_a_value() -> None:
    grammar = Grammar(WORDS)
    assert grammar == Grammar(WORDS) != Grammar('root ::= "a"')
    assert pickle.loads(pickle.dumps(grammar)) == copy.deepcopy(grammar) == grammar
    assert SamplerParams(grammar=grammar) == SamplerParams(grammar=Grammar(WORDS))
    assert len({grammar, Grammar(WORDS)}) == 1


# --- no grammars ---

DOUBLED = "root ::= a1\n" + "".join(f"a{i} ::= a{i + 1} a{i + 1}\n" for i in range(1, 60))
"""60 rules with 2 ** 60 ways through them, and the last one missing."""

BAD = {
    "": "has no rules",
    "root ::= other": "rule other is used and not defined",
    'start ::= "a"': "no rule root",
    'root ::= "a': 'a " is missing',
    "root ::= [a": "a ] is missing",
    "root ::= [z-a]": "ends before it begins",
    'root ::= ("a"': r"a \) is missing",
    'root = "a"': "::= is missing",
    'root ::= "a"\nroot ::= "b"': "line 2: the rule root is defined twice",
    "root ::= *": r"nothing before \*",
    'root ::= "a"{2,1}': "most is below its least",
    'root ::= "a"{,3}': "a number is missing",
    r'root ::= "\q"': "unknown escape",
    r'root ::= "\u12"': "hexadecimal digits",
    'root ::= "a" ) "b"': "no part of a rule",
    "root ::= <think>": "tokens .* are not understood",
    "root ::= " + "(" * 100_000: "nested more than",
    'root ::= "a"{9999999999999999999999}': "written out",
    'root ::= "abcdefgh"{99999}': "written out",
    'root ::= root "a" | "b"': "rule root begins with itself",
    'root ::= a root "x" | "y"\na ::= b\nb ::= "" | "z"': "rule root begins with itself",
    DOUBLED + 'a60 ::= "" | a1 "x"': "begins with itself",
    'root ::= "a" root': "rule root never comes to an end",
    "root ::= root": "never comes to an end",
    'root ::= "' + "a" * (1 << 20) + '"': "are the most",
    "a" * 900_000
    + ' ::= "x"{0,60000}\nroot ::= "y"': "name has 900000 characters; 200 are the most",
}


@pytest.mark.parametrize(("text", "why"), BAD.items(), ids=range(len(BAD)))
def test_a_text_that_is_no_grammar_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Grammar(text)


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (DOUBLED + 'a60 ::= "" | "x"', ""),
        # twice as many ways with every character
        ('root ::= s "!"\ns ::= "a" s "x" | "a" s "y" | "a"', "a" * 64),
    ],
)
def test_a_grammar_with_too_many_readings_is_refused_in_time(
    engine: Engine, grammar: str, said: str
) -> None:
    """Each would take longer than the machine lives, and more memory than it has."""
    with pytest.raises(InputError, match="read in too many ways"):
        Grammar(grammar).allowed(engine.model, engine.model.tokenize(said, add_special=False))


def test_rules_that_only_repeat_what_may_be_empty_are_followed(engine: Engine) -> None:
    grammar = Grammar('root ::= (("a"?)* ("b"?)*)* "."')
    assert grammar.allowed(engine.model, engine.model.tokenize("abab", add_special=False)).any()


def test_a_long_chain_of_rules_is_followed(engine: Engine) -> None:
    rules = [f"r{i} ::= r{i + 1}" for i in range(50_000)]
    grammar = Grammar("\n".join(["root ::= r0", *rules, 'r50000 ::= "me"']))
    reply = engine.generate(PROMPT, sampler=SamplerParams(grammar=grammar))
    assert "".join(token.text for token in reply) == "me"


def test_a_rule_of_many_rules_is_checked_in_one_go() -> None:
    """Looked through from its beginning each time one of them is known, it took minutes."""
    names = [f"r{i}" for i in range(30_000)]
    rules = [f'{name} ::= "x"' for name in reversed(names)]
    Grammar("\n".join([*rules, "root ::= " + " ".join(f"{name}{{5}}" for name in names)]))


@not_under_address_sanitizer("it keeps what was freed")
def test_what_is_kept_of_a_grammar_stays_small(engine: Engine) -> None:
    """Each text leads to other 3,600 readings: every token would keep 2 MB of them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    ends = " | ".join(rf'tail [\uD800-\uDFFF] "{i}"' for i in range(90))
    ways = " | ".join(f'"{c}" ends-{c}' for c in letters)
    rules = [f"root ::= [a-z ]* ({ways})", "tail ::= [a-z ]{40}"]
    rules += [f"ends-{c} ::= {ends}" for c in letters]
    params = under("\n".join(rules), temperature=30, top_k=0, top_p=1, min_p=0)
    before = memory.resident_bytes()
    if before is None:
        pytest.skip("this system does not say how much memory a process has: run it on Linux")
    reply = engine.generate(PROMPT, sampler=params, max_tokens=40)
    list(reply)
    assert reply.stop_reason == "length"
    after = memory.resident_bytes()
    assert after is not None
    assert after - before < 40 << 20


def test_what_is_no_grammar_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="must be a Grammar"):
        SamplerParams(grammar="root ::= .")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be a text"):
        Grammar(b"root ::= .")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="surrogate"):
        Grammar('root ::= "\ud800"')
