"""A request's ``logit_bias``, in OpenAI's shape and llama-server's, on every route."""

from __future__ import annotations

import math
from typing import Any

import pytest
from serving import CHAT, TEXT, chat
from starlette.testclient import TestClient
from tiny_models import TinyModel

from pyemo import Model
from pyemo.server import logit_bias
from pyemo.server.refusals import Refusal

STORY = " story"


@pytest.fixture(scope="module")
def model(tiny_llama: TinyModel) -> Model:
    return Model.load(tiny_llama.path)


@pytest.fixture(scope="module")
def story(model: Model) -> int:
    (token,) = model.tokenize(STORY, add_special=False)
    return token


def begun(client: TestClient, **fields: Any) -> tuple[str, str]:
    """Return the first token's text of a chat's answer and of a text's continuation."""
    asked = {"max_tokens": 1, "seed": 1, "temperature": 2.0, **fields}
    answer = client.post(CHAT, json=chat(**asked))
    text = client.post(TEXT, json={"prompt": "the happy", **asked})
    assert answer.status_code == text.status_code == 200, answer.text + text.text
    return answer.json()["choices"][0]["message"]["content"], text.json()["choices"][0]["text"]


@pytest.mark.parametrize("spelling", ["openai", "pairs", "text", "pairs of a text"])
def test_a_token_with_100_comes_on_both_routes(
    client: TestClient, story: int, spelling: str
) -> None:
    bias = {
        "openai": {str(story): 100},
        "pairs": [[story, 100.0]],
        "text": {STORY: 100},
        "pairs of a text": [[STORY, 100.0]],
    }[spelling]
    said, text = begun(client, logit_bias=bias)
    assert said.strip() == STORY.strip()
    assert text == STORY


@pytest.mark.parametrize("never", [False, -100])
def test_a_token_that_is_never_to_come_does_not(
    client: TestClient, story: int, never: float
) -> None:
    """Though it would be the only one otherwise: of a token that is named twice both count."""
    again = [[story, 50.0], [story, never]]
    assert begun(client, logit_bias=[[story, 50.0]])[1] == STORY
    assert begun(client, logit_bias=again, temperature=0)[1] != STORY


def test_a_bias_of_nothing_changes_nothing(client: TestClient, story: int) -> None:
    plain = begun(client, max_tokens=12)
    for nothing in (None, {}, [], {str(story): 0}):
        assert begun(client, max_tokens=12, logit_bias=nothing) == plain


def test_the_message_says_which_tokens_the_model_has(client: TestClient, model: Model) -> None:
    answer = client.post(CHAT, json=chat(logit_bias={"50256": -100}))
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "token 50256" in message
    assert f"0 to {model.n_vocab - 1}" in message


def test_texts_become_their_tokens(model: Model) -> None:
    words = model.tokenize("the happy story", add_special=False)
    assert len(words) > 1
    found = logit_bias.entries({"the happy story": -2, "7": False})
    assert logit_bias.by_id(found, model) == (*((one, -2.0) for one in words), (7, -math.inf))


def test_300_tokens_are_the_most(model: Model) -> None:
    assert len(logit_bias.by_id(logit_bias.entries([[5, 1]] * 300), model)) == 300
    for given in ([[5, 1]] * 301, [["story " * 301, 1]]):
        with pytest.raises(Refusal, match="more than 300"):
            logit_bias.by_id(logit_bias.entries(given), model)
