"""The routes beside the completions: models, moods, management, keys, limits, metrics."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import CHAT, TEXT, chat, client_of, events, long_chat, streamed_text
from starlette.testclient import TestClient

from pyemo.server.config import ServerConfig
from pyemo.server.service import Service

Clients = Callable[..., TestClient]
KEY = "a-key-of-the-test"


def test_the_models_are_the_model_its_aliases_and_the_presets(new_client: Clients) -> None:
    client = new_client(alias=["small"], presets={"grumpy": {"steering": "cold=0.2"}})
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["llama", "small", "llama:grumpy"]
    assert client.get("/v1/models/llama:grumpy").json()["object"] == "model"
    assert client.get("/v1/models/gpt-4o").status_code == 404


def test_a_preset_is_a_model_of_its_own(new_client: Clients) -> None:
    preset = {"steering": "cold=0.2", "guard": True}
    client = new_client(presets={"grumpy": preset}, steering="warm=0.1")
    answer = client.post(CHAT, json=chat(model="llama:grumpy")).json()
    assert answer["model"] == "llama:grumpy"
    assert answer["choices"][0]["pyemo"]["steering"] == "cold=0.2"
    assert "guard" in answer["choices"][0]["pyemo"]
    other = client.post(CHAT, json=chat(model="llama:grumpy", steering="")).json()
    assert other["choices"][0]["pyemo"]["steering"] == ""


def test_what_there_is_to_steer_with(client: TestClient) -> None:
    found = client.get("/v1/steering").json()
    vectors = {vector["name"]: vector for vector in found["vectors"]}
    assert set(vectors) == {"calibrated", "cold", "other", "raw", "warm"}
    assert vectors["calibrated"]["window"] == [0.2, 0.4]
    assert vectors["calibrated"]["recommended"] == 0.3
    assert vectors["warm"]["unit"] == "residual"
    assert vectors["warm"]["layers"] == [1, 4]
    assert vectors["warm"]["fit"] == "same file"
    assert vectors["warm"]["gauge"] is True
    assert vectors["raw"]["gauge"] is False
    assert vectors["raw"]["recommended"] is None
    assert "other weights" in vectors["other"]["error"]


def test_a_running_reply_is_steered_from_its_next_token(settings: dict[str, Any]) -> None:
    service = Service(ServerConfig(**{**settings, "n_ctx": 2048}))
    client = client_of(service)
    answers: dict[str, Any] = {}

    def steer() -> None:
        while not service._live:
            time.sleep(0.001)
        (live,) = service._live.values()
        while not live.tickets or len(live.tickets[0].tokens) < 3:
            time.sleep(0.001)
        answers["steer"] = client.post(f"/v1/steering/{live.id}", json={"steering": "cold=0.5"})

    thread = threading.Thread(target=steer)
    thread.start()
    parts = events(client.post(CHAT, json=long_chat(stream=True, steering="")).text)
    thread.join()
    said = answers["steer"].json()
    assert said["applied"] == "cold=0.5"
    assert said["from_token"] >= 3
    last = parts[-1]["choices"][0]["pyemo"]
    assert last["steering"] == "cold=0.5"
    assert [mood["steering"] for mood in last["moods"]] == ["", "cold=0.5"]
    assert last["moods"][1]["from_token"] >= said["from_token"]
    n_more = said["from_token"] + 100
    plain = client.post(CHAT, json=long_chat(max_tokens=n_more)).json()
    text = plain["choices"][0]["message"]["content"]
    assert streamed_text(parts)[:3] == text[:3]
    assert not streamed_text(parts).startswith(text)
    service.close()


def test_a_reply_that_has_ended_cannot_be_steered(client: TestClient) -> None:
    done = client.post(CHAT, json=chat()).json()["id"]
    answer = client.post(f"/v1/steering/{done}", json={"steering": "cold=0.5"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_completion"


def test_the_default_mood_is_set_in_iks_shape(new_client: Clients) -> None:
    client = new_client()
    mood = [{"id": "warm", "scale": 0.25, "layer_start": 2, "layer_end": 2},
            {"id": "cold", "scale": 0}]  # fmt: skip
    assert client.post("/control-vectors/apply", json=mood).json()["applied"] == "warm=0.25@2:3"
    rows = {row["id"]: row for row in client.get("/control-vectors").json()}
    assert rows["warm"]["applied"]
    assert rows["warm"]["scale"] == 0.25
    assert (rows["warm"]["layer_start"], rows["warm"]["layer_end"]) == (2, 2)
    assert not rows["cold"]["applied"]
    answer = client.post(CHAT, json=chat()).json()["choices"][0]["pyemo"]
    assert (answer["steering"], answer["source"]) == ("warm=0.25@2:3", "default")
    assert client.post("/control-vectors/apply", json=[]).json()["applied"] == ""


def test_a_default_that_is_not_there_changes_nothing(new_client: Clients) -> None:
    client = new_client(steering="warm=0.1")
    answer = client.post("/control-vectors/apply", json=[{"id": "wram", "scale": 1}])
    assert answer.status_code == 400
    assert client.get("/v1/steering").json()["default"] == "warm=0.1"


def test_a_default_whose_vector_is_gone_is_the_servers_fault(
    new_client: Clients, vectors: Path, tmp_path: Path
) -> None:
    shutil.copy(vectors / "warm.gguf", tmp_path / "mine.gguf")
    client = new_client(vectors=tmp_path, steering="mine=0.1")
    (tmp_path / "mine.gguf").unlink()
    answer = client.post(CHAT, json=chat())
    assert answer.status_code == 500
    assert "default mood" in answer.json()["error"]["message"]
    assert client.post(CHAT, json=chat(steering="")).status_code == 200


def test_a_vector_is_unloaded_and_loaded_by_name(new_client: Clients) -> None:
    client = new_client()
    assert client.post("/control-vectors/unload", json={"name": "warm"}).status_code == 200
    assert client.post(CHAT, json=chat(steering="warm=0.1")).status_code == 400
    assert client.post("/control-vectors/load", json={"name": "warm"}).status_code == 200
    assert client.post(CHAT, json=chat(steering="warm=0.1")).status_code == 200


@pytest.mark.parametrize("name", ["../warm", "/etc/passwd", "nobody", "", None, 5])
def test_only_names_are_loaded(client: TestClient, name: Any) -> None:
    answer = client.post("/control-vectors/load", json={"name": name})
    assert answer.status_code == 400
    assert "/" not in answer.json()["error"]["message"].replace(str(name), "")


def test_a_vector_that_is_added_or_overwritten_is_used_after_reload(
    new_client: Clients, vectors: Path, tmp_path: Path
) -> None:
    shutil.copy(vectors / "warm.gguf", tmp_path / "mine.gguf")
    client = new_client(vectors=tmp_path)

    def text(name: str) -> str:
        answer = client.post(CHAT, json=chat(steering={name: 0.5}))
        return str(answer.json()["choices"][0]["message"]["content"])

    before = text("mine")
    shutil.copy(vectors / "cold.gguf", tmp_path / "mine.gguf")
    shutil.copy(vectors / "warm.gguf", tmp_path / "new.gguf")
    assert client.post(CHAT, json=chat(steering="new=0.5")).status_code == 400
    assert client.post("/control-vectors/reload").json() == {"names": ["mine", "new"]}
    assert text("new") == before
    assert text("mine") != before


def test_a_vector_that_is_gone_is_refused_and_no_path_is_told(
    new_client: Clients, vectors: Path, tmp_path: Path
) -> None:
    shutil.copy(vectors / "warm.gguf", tmp_path / "mine.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    client = new_client(vectors=tmp_path)
    (tmp_path / "mine.gguf").unlink()
    for name in ("mine", "broken"):
        answer = client.post(CHAT, json=chat(steering={name: 0.1}))
        assert answer.status_code == 400
        assert str(tmp_path) not in answer.text
    assert str(tmp_path) not in client.get("/v1/steering").text


# --- who may ask ---


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": "Bearer \xe9"},
        {"X-API-Key": KEY},
    ],
)
def test_without_the_key_nothing_is_answered(new_client: Clients, headers: dict[str, str]) -> None:
    client = new_client(api_key=[KEY])
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("GET", "/metrics"), ("GET", "/x")):
        answer = client.request(method, path, headers=raw)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        assert KEY not in answer.text


def test_each_of_the_keys_opens(new_client: Clients) -> None:
    client = new_client(api_key=[KEY, "another"])
    for key in (KEY, "another"):
        headers = {"Authorization": f"Bearer {key}"}
        assert client.post(CHAT, json=chat(), headers=headers).status_code == 200
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("cors", "origin", "status"),
    [
        ([], "http://evil.example", 403),
        ([], "null", 403),
        ([], "http://127.0.0.1", 200),
        (["http://app.example"], "http://app.example", 200),
        (["http://app.example"], "http://evil.example", 403),
        (["*"], "http://evil.example", 200),
    ],
)
def test_pages_of_other_origins_need_leave(
    new_client: Clients, cors: list[str], origin: str, status: int
) -> None:
    client = new_client(cors=cors)
    answer = client.post(CHAT, json=chat(max_tokens=1), headers={"Origin": origin})
    assert answer.status_code == status
    allowed = answer.headers.get("Access-Control-Allow-Origin")
    assert allowed == ((cors or [None])[0] if status == 200 and cors else None)


def test_a_browsers_question_is_answered_without_a_key(new_client: Clients) -> None:
    client = new_client(cors=["http://app.example"], api_key=[KEY])
    headers = {"Origin": "http://app.example", "Access-Control-Request-Method": "POST",
               "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    assert client.options(CHAT, headers=headers).status_code == 200


def test_another_name_for_this_machine_is_refused(client: TestClient) -> None:
    for host in ("rebound.example", "rebound.example:8080", "127.0.0.1.example:80"):
        answer = client.get("/v1/models", headers={"Host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host")
    for host in ("localhost:8080", "127.0.0.1:8080", "[::1]:8080"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200


# --- limits ---


def test_a_prompt_longer_than_the_context_is_refused_before_the_stream(client: TestClient) -> None:
    for stream in (False, True):
        answer = client.post(CHAT, json=chat("the happy story " * 200, stream=stream))
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert answer.json()["error"]["param"] == "messages"


def test_a_reply_ends_with_the_context(client: TestClient) -> None:
    answer = client.post(TEXT, json={"prompt": "the happy " * 100, "temperature": 0}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["pyemo"]["stop_reason"] in ("length", "context")
    assert answer["usage"]["total_tokens"] in (512, 513)


def test_a_full_queue_is_429_with_a_time_to_wait(new_client: Clients) -> None:
    client = new_client(n_seq_max=1, max_queue=1)
    answers = []

    def ask() -> None:
        answers.append(client.post(CHAT, json=long_chat()))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_a_body_too_large_is_413(new_client: Clients) -> None:
    client = new_client(max_body=1000)
    assert client.post(CHAT, json=chat("x" * 10_000_000)).status_code == 413
    assert client.post(CHAT, json=chat()).status_code == 200


def test_a_reply_past_the_time_limit_ends_with_what_it_has(new_client: Clients) -> None:
    client = new_client(time_limit=0.2, n_ctx=2048)
    body = long_chat()
    choice = client.post(CHAT, json=body).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["pyemo"]["stop_reason"] == "time_limit"
    parts = events(client.post(CHAT, json={**body, "stream": True}).text)
    assert parts[-1]["choices"][0]["pyemo"]["stop_reason"] == "time_limit"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", CHAT, 405), ("POST", "/health", 405), ("PUT", "/", 405)],
)
def test_what_is_no_route_has_the_envelope_too(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert path in answer.json()["error"]["message"]


def test_what_nobody_foresaw_is_500_without_its_words(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a secret of /root")

    monkeypatch.setattr(service, "begin", fail)
    answer = client.post(CHAT, json=chat())
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_a_scheduler_that_has_stopped_is_told_by_the_health(new_client: Clients) -> None:
    client = new_client()
    assert client.get("/health").status_code == 200
    client.app.state.routes._service.scheduler.close()  # type: ignore[attr-defined]
    answer = client.post(CHAT, json=chat())
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "shutting_down"
    assert client.get("/health").status_code == 503


def test_the_metrics_count_what_was_done(new_client: Clients) -> None:
    client = new_client()
    client.post(CHAT, json=chat())
    client.post(CHAT, json=chat(steering="wram"))
    text = client.get("/metrics").text
    assert "pyemo_tokens_out_total 8.0" in text
    assert f'pyemo_answers_total{{route="{CHAT}",status="200"}} 1.0' in text
    assert f'pyemo_answers_total{{route="{CHAT}",status="400"}} 1.0' in text
    assert "pyemo_first_token_seconds_count 1.0" in text
    assert "pyemo_running 0.0" in text


def test_the_page_is_one_file_without_a_network(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "<script src" not in answer.text
    assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy


def test_a_reply_that_ignores_its_end_has_all_its_tokens(client: TestClient) -> None:
    def answer(seed: int, **fields: Any) -> dict[str, Any]:
        return client.post(CHAT, json=long_chat(seed=seed, max_tokens=200, **fields)).json()

    seed = next(
        seed
        for seed in range(100)
        if answer(seed, ignore_eos=False)["choices"][0]["finish_reason"] == "stop"
    )
    whole, short = answer(seed), answer(seed, ignore_eos=None)
    assert whole["usage"]["completion_tokens"] == 200
    assert whole["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] < 200
    text = short["choices"][0]["message"]["content"]
    assert whole["choices"][0]["message"]["content"].startswith(text)
