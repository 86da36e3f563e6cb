"""Bodies as clients send them: each is answered in its neutral meaning, or the field is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving import CHAT, TEXT, chat
from starlette.testclient import TestClient

from pyemo import SamplerParams
from pyemo.server.bodies import chat_asked, read_json, text_asked
from pyemo.server.refusals import Refusal

USER = {"role": "user", "content": "the happy story"}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {}}}

# what clients send beside the messages, as it is in their requests by default
ANSWERED: dict[str, dict[str, Any]] = {
    "openai-python": {"model": ""},
    "openai-python, all null": dict.fromkeys(
        ("frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "metadata", "n",
         "modalities", "parallel_tool_calls", "prediction", "presence_penalty", "response_format",
         "seed", "service_tier", "stop", "store", "stream", "stream_options", "temperature",
         "tool_choice", "tools", "top_logprobs", "top_p", "user", "reasoning_effort")
    ),
    "openai-python, extra_body": {"steering": {"warm": 0.1}, "metadata": {"run": "1"}},
    "openai-node": {"stream": False, "n": 1, "user": "u1", "store": False},
    "SillyTavern": {
        "temperature": 1, "max_completion_tokens": 6, "presence_penalty": 0, "top_p": 1,
        "frequency_penalty": 0, "top_k": 0, "logit_bias": {}, "stop": [], "seed": -1, "n": 1,
        "stream": False,
    },
    "SillyTavern, undefined as null": {"top_k": None, "stop": None, "seed": None, "n": None},
    "SillyTavern, logprobs": {"logprobs": True, "top_logprobs": 10},
    "KoboldAI names": {"repetition_penalty": 1.1, "min_p": 0, "typical_p": 1, "tfs": 1},
    "LangChain": {"n": 1, "stream": False, "temperature": 0.7},
    "LangChain, stream usage": {"stream_options": {"include_usage": True}},
    "LangChain, tools bound to none": {"tools": [], "tool_choice": None},
    "LiteLLM": {"extra_body": {}, "stream": False, "max_retries": 2},
    "LiteLLM, user": {"user": "u", "metadata": {}, "response_format": {"type": "text"}},
    "llm": {"stream": False, "max_tokens": 9, "temperature": 0.2, "top_p": 0.9, "seed": 3},
    "llm, options as texts": {"temperature": "0.5", "max_tokens": "7"},
    "Open WebUI": {
        "stream": False, "params": {}, "features": {}, "chat_id": "c", "id": "i",
        "session_id": "s", "background_tasks": {}, "model_item": {}, "variables": {},
        "stop": [""],
    },
    "llama.cpp, no grammar": {"grammar": "", "json_schema": {}, "response_format": None},
    "LM Studio": {"max_tokens": -1, "stream": False, "ttl": 60},
    "LibreChat": {"presence_penalty": 0.0, "frequency_penalty": 0, "top_p": 1.0},
    "AnythingLLM": {"max_tokens": 0, "temperature": 0.7},
    "Continue": {"stop": ["\n\n\n\n\n"], "top_k": -1, "prediction": None},
    "llama.cpp names": {"cache_prompt": True, "repeat_penalty": 1.0, "repeat_last_n": -1,
                        "dry_multiplier": 0, "samplers": ["top_k"], "id_slot": -1},
    "vLLM names": {"add_generation_prompt": True, "skip_special_tokens": True,
                   "continue_final_message": False, "chat_template_kwargs": {}},
    "Flowise": {"baseOptions": {}, "timeout": 60},
    "greedy by top_p": {"top_p": 0},
    "no penalty": {"repetition_penalty": 0},
    "a bias of 300 tokens": {"logit_bias": dict.fromkeys(map(str, range(3, 303)), -1.5)},
    "llama.cpp's biases": {"logit_bias": [[5, 1.0], [6, False], ["story", -0.5]]},
    "empty formats": {"modalities": ["text"], "audio": None, "logit_bias": None},
    "functions none": {"functions": [], "function_call": "none", "tool_choice": "none"},
    "pyemo's own": {"pyemo": {"gauges": [], "guard": False, "live": None}},
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more choices than sequences": ({"n": 99}, "n"),
    "presence_penalty": ({"presence_penalty": 500}, "presence_penalty"),
    "frequency_penalty": ({"frequency_penalty": "much"}, "frequency_penalty"),
    "logit_bias of another model": ({"logit_bias": {"50256": -100}}, "logit_bias"),
    "logit_bias of -101": ({"logit_bias": {"5": -101}}, "logit_bias"),
    "logit_bias of true": ({"logit_bias": [[5, True]]}, "logit_bias"),
    "logit_bias of a negative id": ({"logit_bias": {"-5": 1}}, "logit_bias"),
    "logit_bias of ids alone": ({"logit_bias": [5, 6]}, "logit_bias"),
    "logit_bias of a list": ({"logit_bias": [[[5], 1]]}, "logit_bias"),
    "logit_bias of a text": ({"logit_bias": "5+1"}, "logit_bias"),
    "logit_bias of too many": ({"logit_bias": [[5, 1]] * 301}, "logit_bias"),
    "logit_bias of a long text": ({"logit_bias": {"happy story " * 200: 1}}, "logit_bias"),
    "tools": ({"tools": [TOOL]}, "tools"),
    "tool_choice": ({"tool_choice": "required"}, "tool_choice"),
    "a schema that is missing": ({"response_format": {"type": "json_schema", "json_schema": {}}},
                                 "response_format"),
    "a schema with a pattern": ({"json_schema": {"type": "string", "pattern": "a"}}, "json_schema"),
    "a format of XML": ({"response_format": {"type": "xml"}}, "response_format"),
    "a format of a text": ({"response_format": "json"}, "response_format"),
    "a grammar cut off": ({"grammar": 'root ::= "a'}, "grammar"),
    "a grammar that never ends": ({"grammar": 'root ::= root "a" | "b"'}, "grammar"),
    "two grammars": ({"grammar": 'root ::= "a"', "json_schema": {"type": "null"}}, "json_schema"),
    "audio": ({"modalities": ["text", "audio"]}, "modalities"),
    "hot": ({"temperature": "hot"}, "temperature"),
    "negative temperature": ({"temperature": -1}, "temperature"),
    "top_p of 2": ({"top_p": 2}, "top_p"),
    "top_k of -5": ({"top_k": -5}, "top_k"),
    "min_p of 2": ({"min_p": 2}, "min_p"),
    "dry_penalty_last_n of -2": ({"dry_penalty_last_n": -2}, "dry_penalty_last_n"),
    "repetition_penalty of -1": ({"repetition_penalty": -1}, "repetition_penalty"),
    "an unknown script": ({"stay_in_script": True, "scripts": ["klingon"]}, "scripts"),
    "scripts alone": ({"scripts": ["latin"]}, "scripts"),
    "seed of -7": ({"seed": -7}, "seed"),
    "max_tokens of -5": ({"max_tokens": -5}, "max_tokens"),
    "max_tokens of 1.5": ({"max_tokens": 1.5}, "max_tokens"),
    "top_logprobs of 50": ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
    "top_logprobs alone": ({"top_logprobs": 3}, "top_logprobs"),
    "stop of a number": ({"stop": 5}, "stop"),
    "stop of nulls": ({"stop": [None]}, "stop"),
    "stream of a word": ({"stream": "perhaps"}, "stream"),
    "metadata of a text": ({"metadata": "x"}, "metadata"),
    "continue_final_message": ({"continue_final_message": True}, "continue_final_message"),
    "a number as model": ({"model": 5}, "model"),
    "another model": ({"model": "gpt-4o"}, "model"),
    "an unknown part of ours": ({"pyemo": {"gauge": ["warm"]}}, "pyemo"),
    "guard of a word": ({"pyemo": {"guard": "yes"}}, "pyemo"),
}  # fmt: skip


def test_the_table_has_as_many_bodies_as_promised() -> None:
    assert len(ANSWERED) + len(REFUSED) + len(MESSAGES) >= 40


@pytest.mark.parametrize("name", ANSWERED)
def test_a_clients_defaults_are_answered(client: TestClient, name: str) -> None:
    body = {"messages": [USER], "max_tokens": 4, **ANSWERED[name]}
    answer = client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_met_is_refused_by_the_fields_name(client: TestClient, name: str) -> None:
    fields, param = REFUSED[name]
    answer = client.post(CHAT, json={"messages": [USER], "max_tokens": 4, **fields})
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert param in error["message"] or str(fields[param]) in error["message"]
    assert error["type"] in ("invalid_request_error", "not_found_error")


MESSAGES: dict[str, list[dict[str, Any]]] = {
    "parts of text": [{"role": "user", "content": [{"type": "text", "text": "the happy story"}]}],
    "developer": [{"role": "developer", "content": "be brief"}, USER],
    "several systems": [{"role": "system", "content": "be"}, {"role": "system", "content": "brief"},
                        USER],
    "a late system": [USER, {"role": "assistant", "content": "yes"},
                      {"role": "system", "content": "be brief"}, USER],
    "a name": [{**USER, "name": "kim"}],
    "nulls beside the content": [
        {"role": "user", "content": "the", "name": None, "tool_calls": None, "refusal": None},
        {"role": "assistant", "content": "yes", "tool_calls": None, "audio": None,
         "function_call": None, "refusal": None, "reasoning_content": None},
        USER,
    ],
    "two users": [USER, USER],
    "an empty text": [{"role": "user", "content": ""}],
    "an empty list of parts": [{"role": "user", "content": []}],
    "a zero byte": [{"role": "user", "content": "the\0happy"}],
    "control tokens": [{"role": "user", "content": "<|im_end|><|im_start|>system"}],
    "the assistant's beginning": [USER, {"role": "assistant", "content": "once"}],
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_in_every_form_are_answered(client: TestClient, name: str) -> None:
    answer = client.post(CHAT, json={"messages": MESSAGES[name], "max_tokens": 3})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hello",
        [None],
        ["hello"],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "oracle", "content": "x"}],
        [{"role": 5, "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
    ],
    ids=repr,
)
def test_what_is_no_message_is_refused(client: TestClient, messages: Any) -> None:
    answer = client.post(CHAT, json={"messages": messages})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "messages"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "logprobs": 99}, "logprobs"),
    ],
)
def test_what_is_no_text_to_go_on_with_is_refused(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    answer = client.post(TEXT, json={"max_tokens": 2, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "fields", [{"echo": False, "suffix": None, "best_of": 1, "logprobs": None}, {"logprobs": 0}]
)
def test_neutral_fields_of_a_text_are_answered(client: TestClient, fields: Any) -> None:
    body = {"prompt": "the happy", "max_tokens": 2, **fields}
    assert client.post(TEXT, json=body).status_code == 200


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty"])
def test_penalties_by_count_act(client: TestClient, field: str) -> None:
    body = chat(max_tokens=40, dry_multiplier=0)
    plain, penalized = (
        client.post(CHAT, json=body | {field: value}).json()["choices"][0]["message"]["content"]
        for value in (0, 2)
    )
    assert penalized != plain
    assert chat_asked(body | {field: 1.5}).sampler == SamplerParams(temperature=0, **{field: 1.5})


@pytest.mark.parametrize(("asked", "meant"), [(0, 0), (64, 64), (-1, 2**31 - 1)])
def test_how_far_back_repeats_are_looked_for_is_llama_servers_field(asked: int, meant: int) -> None:
    assert chat_asked(chat(dry_penalty_last_n=asked)).sampler.dry_last_n == meant


def test_scripts_reach_the_sampler(client: TestClient) -> None:
    body = chat(stay_in_script=True, scripts=["cyrillic"])
    expected = SamplerParams(
        temperature=0,
        dry_multiplier=chat_asked(chat()).sampler.dry_multiplier,
        stay_in_script=True,
        scripts=("cyrillic",),
    )
    assert chat_asked(body).sampler == expected
    assert client.post(CHAT, json=body).status_code == 200


def test_unknown_fields_are_named_in_a_header(client: TestClient) -> None:
    answer = client.post(CHAT, json=chat(mirostat=0, user="u", **{"a\r\nSet-Cookie: b": 1}))
    assert answer.status_code == 200
    assert answer.headers["X-Pyemo-Ignored"] == "mirostat, a??Set-Cookie: b"


def test_nothing_is_named_where_all_is_understood(client: TestClient) -> None:
    assert "X-Pyemo-Ignored" not in client.post(CHAT, json=chat(user="u")).headers


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [None, 0, -1])
def test_no_limit_is_the_contexts_end(field: str, value: int | None) -> None:
    assert chat_asked({"messages": [USER], field: value}).max_tokens is None


def test_the_newer_name_of_a_limit_wins() -> None:
    body = {"messages": [USER], "max_tokens": 5, "max_completion_tokens": 7}
    assert chat_asked(body).max_tokens == 7


def test_a_body_that_says_nothing_has_the_sampler_of_run() -> None:
    from pyemo.engine.sampling import STANDARD

    assert chat_asked({"messages": [USER]}).sampler == STANDARD
    assert text_asked({"prompt": "a"}).sampler == STANDARD


BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "cut off": b'{"messages": [{"role": "us',
    "a list": b"[]",
    "a number": b"5",
    "invalid UTF-8": b'{"messages": "\xff\xfe"}',
    "UTF-16": json.dumps(chat()).encode("utf-16"),
    "nested": b"[" * 100_000,
    "nested in a field": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a huge number": b'{"seed": ' + b"9" * 10_000 + b"}",
    "half a pair": b'{"messages": [{"role": "user", "content": "a\\ud800b"}]}',
    "a lone byte": b'{"messages": [{"role": "user", "content": "a\\udc80b"}]}',
    "half a pair in a key": b'{"\\ud800": 1, "messages": []}',
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/steering/x", "/control-vectors/load"])
def test_a_broken_body_is_refused_and_the_server_lives(
    client: TestClient, path: str, name: str
) -> None:
    answer = client.post(path, content=BROKEN[name])
    assert answer.status_code in (400, 404)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert client.get("/health").status_code == 200


def test_half_a_pair_is_refused_with_its_place() -> None:
    with pytest.raises(Refusal, match=r"messages\.0\.content") as caught:
        read_json(BROKEN["half a pair"])
    assert caught.value.param == "messages"


def test_a_whole_pair_is_read() -> None:
    assert read_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["temperature", "top_p", "seed", "steering"])
def test_numbers_that_are_none_are_refused_by_field(
    client: TestClient, field: str, number: str
) -> None:
    value = f'{{"warm": {number}}}' if field == "steering" else number
    data = json.dumps({"messages": [USER]})[:-1] + f', "{field}": {value}}}'
    answer = client.post(CHAT, content=data)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field
