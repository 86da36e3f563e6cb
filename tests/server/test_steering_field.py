"""The mood of a request, in all its spellings and places."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from serving import CHAT, chat
from starlette.testclient import TestClient

from pyemo.moods.grammar import parse_vector_spec
from pyemo.server.refusals import Refusal
from pyemo.server.service import Service
from pyemo.server.steering_field import TermSpec, parsed, spelled

MIX = (TermSpec("anger", 0.02, range(8, 20)), TermSpec("calm", -0.01))


@pytest.mark.parametrize(
    "value",
    [
        "anger=0.02@8:20 + calm=-0.01",
        "anger=0.02@8:20,calm=-0.01",
        "anger = 0.02 @ 8:20 calm=-1e-2",
        "--cvec anger=0.02@8:20 --cvec calm=-0.01",
        "anger=0.02@8:20+calm=-0.01",
        '{"terms": [{"name": "anger", "strength": 0.02, "layers": "8:20"}, "calm=-0.01"]}',
        {"terms": [{"name": "anger", "strength": 0.02, "layers": [8, 20]}, {"name": "calm",
         "strength": -0.01}]},
        {"vectors": [{"source": "anger", "scale": 0.02, "layers": "8:20"}, "calm=-0.01"]},
        [{"name": "anger", "strength": 0.02, "layers": [8, 20]}, {"name": "calm", "scale": -0.01}],
        ["anger=0.02@8:20", "calm=-0.01"],
    ],
)  # fmt: skip
def test_all_spellings_say_the_same(value: Any) -> None:
    assert parsed(value, "steering").terms == MIX


def test_an_object_of_names_has_no_layers() -> None:
    assert parsed({"anger": 0.02, "calm": None}, "steering").terms == (
        TermSpec("anger", 0.02),
        TermSpec("calm"),
    )


@pytest.mark.parametrize("value", ["", "  ", {}, [], {"terms": []}, "[]"])
def test_what_is_empty_is_unsteered(value: Any) -> None:
    assert parsed(value, "steering").terms == ()


def test_a_term_says_operator_scope_and_schedule() -> None:
    term = {"name": "sad", "strength": 1, "operator": "project_out", "scope": "reply",
            "schedule": "half-life:40", "layers": 14}  # fmt: skip
    (found,) = parsed({"terms": [term], "guard": True}, "steering").terms
    assert found == TermSpec("sad", 1.0, range(14, 15), "project_out", "reply", "half-life:40")


RULED = (
    TermSpec("calm", 0.02, range(10, 12), "add_keep_norm", when="anger>0.1 and not joy>0.2"),
    TermSpec("sad", 1.0, operator="project_out"),
)


def test_a_text_may_have_operators_and_rules() -> None:
    text = "calm=0.02@add_keep_norm@10:12@when:anger>0.1 and not joy>0.2 + sad=1@project_out"
    assert parsed(text, "steering").terms == RULED
    assert spelled(RULED) == text


def test_a_term_may_have_a_rule() -> None:
    term = {"name": "calm", "strength": 0.02, "when": "anger>0.1"}
    assert parsed([term], "steering").terms == (TermSpec("calm", 0.02, when="anger>0.1"),)
    term = {"name": "calm", "strength": 0.02, "when_prompt": "anger>0.1"}
    assert parsed([term], "steering").terms == (TermSpec("calm", 0.02, when_prompt="anger>0.1"),)


def test_nothing_that_a_text_may_say_is_lost() -> None:
    text = "calm=0.02@add_keep_norm@10:12@when:anger>0.1"
    (found,) = parsed(text, "steering").terms
    said = asdict(parse_vector_spec(text, may_be_file=False))
    said["name"] = said.pop("source")
    unsaid = [name for name, value in said.items() if not value]
    assert unsaid == ["when_prompt"]
    assert all(getattr(found, name) == value for name, value in said.items() if value)


@pytest.mark.parametrize(("rule", "holds"), [("cold<9 and warm>-9", True), ("cold>9", False)])
def test_a_rule_on_the_prompt_is_decided_and_said(
    client: TestClient, rule: str, holds: bool
) -> None:
    def answer(mood: str) -> Any:
        found = client.post(CHAT, json=chat(steering=mood))
        assert found.status_code == 200, found.text
        return found.json()["choices"][0]

    choice = answer(f"warm=0.5@when-prompt:{rule}")
    (decision,) = choice["pyemo"]["decisions"]
    assert decision["holds"] is holds
    same = answer("warm=0.5" if holds else "")
    assert choice["message"]["content"] == same["message"]["content"]


def test_a_rule_acts_and_its_names_are_looked_up_here(client: TestClient) -> None:
    def text(mood: str) -> str:
        answer = client.post(CHAT, json=chat(steering=mood))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    assert text("warm=0.5@when:cold>9") == text("")
    assert text("warm=0.5@when:cold<9") == text("warm=0.5")
    answer = client.post(CHAT, json=chat(steering="warm=0.5@when:/etc/passwd>1"))
    assert answer.json()["error"]["code"] == "unknown_vector"


def test_the_echo_can_be_sent_again() -> None:
    assert parsed(spelled(MIX), "steering").terms == MIX


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "no mood"),
        (True, "no mood"),
        ("anger=much", "not a number"),
        ("anger=nan", "finite"),
        ({"anger": float("inf")}, "finite"),
        ({"anger": "0.02"}, "must be a number"),
        ({"anger": True}, "must be a number"),
        ({"anger": 10**400}, "finite"),
        ("=0.02", "names no vector"),
        ("anger 0.02", "'0.02' names no vector; .* such as anger=0.02"),
        ("anger@20:8", "layers"),
        ("{anger", "JSON"),
        ([0.5], "no object"),
        ({"terms": "anger"}, "a list"),
        ({"terms": [], "names": []}, "keys terms and guard"),
        ({"terms": [], "guard": "yes"}, "true or false"),
        ([{"strength": 1}], "no name"),
        ([{"name": "a", "power": 1}], "no key 'power'"),
        ([{"name": "a", "scale": 1, "strength": 1}], "twice"),
        ([{"name": "a", "operator": "push"}], "operator 'push'"),
        ([{"name": "a", "scope": "all"}], "scope"),
        ([{"name": "a", "schedule": "slowly"}], "schedule"),
        ([{"name": "a", "layers": [1, 2, 3]}], "layers"),
        ([{"name": "a", "when": True}], "a rule such as"),
        ("a@when:", "one rule"),
        ([{"name": "a"}] * 65, "64 terms"),
        ("a" * 5000, "4096"),
    ],
)
def test_what_is_no_mood_is_refused_by_name(value: Any, words: str) -> None:
    with pytest.raises(Refusal, match=words) as caught:
        parsed(value, "steering")
    assert caught.value.param == "steering"
    assert caught.value.code == "invalid_steering"


def applied(client: TestClient, body: dict[str, Any], **headers: str) -> str:
    answer = client.post(CHAT, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    said = answer.json()["choices"][0]["pyemo"]["steering"]
    assert answer.headers["X-Pyemo-Applied"] == (said or "unsteered")
    return said


def test_the_body_comes_before_the_header_before_metadata_before_the_model(
    new_client: Any, service: Service
) -> None:
    client = new_client(steering="calibrated=0.1")
    model = f"{service.model.name}:warm=0.4"
    metadata = {"steering": "warm=0.3"}
    header = {"X-Pyemo-Steering": "warm=0.2"}
    everything = chat(model=model, metadata=metadata, steering="warm=0.1")
    assert applied(client, everything, **header) == "warm=0.1"
    assert applied(client, {**everything, "steering": None}, **header) == "warm=0.2"
    assert applied(client, {**everything, "steering": None}) == "warm=0.3"
    assert applied(client, chat(model=model)) == "warm=0.4"
    assert applied(client, chat()) == "calibrated=0.1"


@pytest.mark.parametrize("empty", ["", {}, []])
def test_an_empty_mood_switches_the_default_off(new_client: Any, empty: Any) -> None:
    client = new_client(steering="warm=0.1")
    assert applied(client, chat(steering=empty)) == ""
    assert applied(client, chat(), **{"X-Pyemo-Steering": ""}) == ""


@pytest.mark.parametrize("name", ["steering", "steer", "cvec"])
def test_the_field_has_three_names(client: TestClient, name: str) -> None:
    assert applied(client, chat(**{name: {"warm": 0.25}})) == "warm=0.25"


def test_two_names_of_the_field_at_once_are_refused(client: TestClient) -> None:
    answer = client.post(CHAT, json=chat(steer="warm=0.1", cvec="cold=0.1"))
    assert answer.status_code == 400
    assert "steer and cvec" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("place", "param"),
    [
        ({"json": chat(steering="wram=0.1")}, "steering"),
        ({"json": chat(metadata={"steering": "wram"})}, "metadata"),
        ({"json": chat(), "headers": {"X-Pyemo-Steering": "wram"}}, "X-Pyemo-Steering"),
        ({"json": chat(pyemo={"gauges": ["wram"]})}, "pyemo"),
    ],
)
def test_an_unknown_name_is_refused_with_the_names_there_are(
    client: TestClient, place: dict[str, Any], param: str
) -> None:
    answer = client.post(CHAT, **place)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "unknown_vector"
    assert error["param"] == param
    assert "calibrated, cold, other, raw, warm" in error["message"]


@pytest.mark.parametrize(
    "name",
    [
        "../warm",
        "./warm.gguf",
        "warm.gguf",
        "/etc/passwd",
        "..%2fwarm",
        "warm\x00",
        "hf:a/b/c.gguf",
    ],
)
def test_a_path_is_no_name(client: TestClient, name: str) -> None:
    answer = client.post(CHAT, json=chat(steering={name: 0.1}))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unknown_vector"


def test_a_vector_of_other_weights_is_refused(client: TestClient) -> None:
    answer = client.post(CHAT, json=chat(steering="other=0.1"))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "vector_mismatch"


def test_a_strength_that_is_not_given_is_the_calibrated_one(client: TestClient) -> None:
    choice = client.post(CHAT, json=chat(steering="calibrated")).json()["choices"][0]
    assert choice["pyemo"]["steering"] == "calibrated=0.3"
    assert choice["pyemo"]["strength_source"] == ["calibration"]
    assert choice["pyemo"]["window"] == [[0.2, 0.4]]


def test_a_raw_vector_needs_a_strength(client: TestClient) -> None:
    answer = client.post(CHAT, json=chat(steering="raw"))
    assert answer.status_code == 400
    assert "does not say its unit" in answer.json()["error"]["message"]


def test_the_terms_of_an_answer_can_be_sent_again(client: TestClient) -> None:
    term = {"name": "warm", "strength": 0.2, "scope": "reply", "schedule": "half-life:9"}
    first = client.post(CHAT, json=chat(steering=[term])).json()["choices"][0]
    again = client.post(CHAT, json=chat(steering={"terms": first["pyemo"]["terms"]})).json()
    assert again["choices"][0]["message"] == first["message"]
    assert again["choices"][0]["pyemo"]["terms"] == first["pyemo"]["terms"]


@pytest.mark.parametrize("name", ["steerings", "control_vectors", "Steering", "stering"])
def test_a_near_miss_of_the_field_is_refused(client: TestClient, name: str) -> None:
    answer = client.post(CHAT, json=chat(**{name: "warm=0.1"}))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name


@pytest.mark.parametrize("near", ["wram", "Warmm"])
def test_a_name_that_is_nearly_right_is_offered(client: TestClient, near: str) -> None:
    answer = client.post(CHAT, json=chat(steering=near))
    assert answer.status_code == 400
    said = answer.json()["error"]["message"]
    assert f"no vector {near!r} here; did you mean 'warm'" in said
    assert "? there are: calibrated, cold" in said
