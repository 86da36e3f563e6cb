"""Two replicas under Ray Serve, by the example's file: answers, conversations, one that dies."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pages import ROOT
from serving import CHAT, chat, events, long_chat, second_turn, streamed_text

pytestmark = [
    pytest.mark.quality,
    pytest.mark.skipif(
        find_spec("ray") is None,
        reason="ray is not installed: pip install -c constraints.txt '.[serve,ray]'",
    ),
]

WHOLE = "application/json"

# what `serve run` does, on a port and in a folder of the test's own; ends when its stdin does
DRIVER = """
import sys

import ray
import ray_serve
from ray import serve

ray.init(
    num_cpus=2,
    include_dashboard=False,
    object_store_memory=100_000_000,
    log_to_driver=False,
    _temp_dir=sys.argv[1],
)
serve.start(http_options={"port": int(sys.argv[2])})
serve.run(ray_serve.replicas(dict(word.split("=", 1) for word in sys.argv[3:])))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""

# Ray's workers are nice by default, and its proxy has 5 s to start: too slow on a busy machine.
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_worker_niceness": "0",
}


class Cluster:
    """Two replicas of two sequences each."""

    def __init__(self, stack: ExitStack, options: dict[str, object]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # paths of sockets in it are short
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", dir="/tmp"))
        log = stack.enter_context((Path(folder) / "log").open("w+"))
        words = [f"{name}={value}" for name, value in options.items()]
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, f"{folder}/ray", str(port), *words],
            cwd=ROOT / "examples",
            env=os.environ | SETTINGS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        stack.callback(end, driver)
        assert driver.stdout is not None
        if not any(line == "ready\n" for line in driver.stdout):
            log.seek(0)
            raise AssertionError(log.read()[-4000:])
        url = f"http://127.0.0.1:{port}"
        self.client = stack.enter_context(httpx2.Client(base_url=url, timeout=600))

    def ask(self, conversation: str, body: dict[str, Any]) -> httpx2.Response:
        """Ask as one conversation."""
        return self.client.post(CHAT, json=body, headers={"X-Conversation": conversation})

    def metric(self, conversation: str, name: str) -> float:
        """A number of the replica that the conversation belongs to."""
        answer = self.client.get("/metrics", headers={"X-Conversation": conversation})
        lines = answer.text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def wait_for(self, conversation: str, name: str, value: float) -> None:
        until = time.monotonic() + 60
        while self.metric(conversation, name) != value:
            assert time.monotonic() < until
            time.sleep(0.02)

    def conversations(self) -> dict[str, list[str]]:
        """Return for each of two replicas two conversations, waiting for the replicas."""
        until = time.monotonic() + 300
        for k in itertools.count():
            found: dict[str, list[str]] = {}
            for name in (f"conversation {k} {i}" for i in range(12)):
                found.setdefault(self.ask(name, chat()).headers["X-Replica"], []).append(name)
            if len(found) == 2 and all(len(names) > 1 for names in found.values()):
                return {replica: names[:2] for replica, names in found.items()}
            assert time.monotonic() < until
            time.sleep(1)
        raise AssertionError


def end(driver: subprocess.Popen[str]) -> None:
    try:
        driver.communicate(timeout=120)
    finally:
        driver.kill()


def kill(replica: str) -> None:
    os.kill(int(replica.rpartition(":")[2]), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(tiny: Callable[..., Any]) -> Iterator[Cluster]:
    options = {"model": tiny("llama").path, "n_ctx": 8192, "n_seq_max": 2, "threads": 1}
    with ExitStack() as stack:
        yield Cluster(stack, options)


def test_two_replicas_answer_alike_whole_and_streamed(cluster: Cluster) -> None:
    body = long_chat(max_tokens=100)
    texts = set()
    for names in cluster.conversations().values():
        whole = cluster.ask(names[0], body)
        texts.add(whole.json()["choices"][0]["message"]["content"])
        streamed = cluster.ask(names[0], body | {"stream": True})
        texts.add(streamed_text(events(streamed.text)))
        assert streamed.headers["X-Replica"] == whole.headers["X-Replica"]
    assert len(texts) == 1


def test_a_stream_comes_through_as_it_is_written(cluster: Cluster) -> None:
    times = []
    with cluster.client.stream("POST", CHAT, json=long_chat(stream=True)) as answer:
        for _ in answer.iter_bytes():
            times.append(time.monotonic())
    assert len(times) > 10
    assert times[1] - times[0] < (times[-1] - times[0]) / 2


def test_a_conversation_stays_on_its_replica(cluster: Cluster) -> None:
    for replica, names in cluster.conversations().items():
        for name in names:
            words = f"{name} the happy story hello world " * 20
            first = cluster.ask(name, chat(words))
            second = cluster.ask(name, second_turn(words, first))
            assert {first.headers["X-Replica"], second.headers["X-Replica"]} == {replica}
            assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 64


def test_a_client_that_leaves_ends_its_reply(cluster: Cluster) -> None:
    name = "one that leaves"
    before = cluster.metric(name, "pyemo_cancelled_total")
    body = long_chat(stream=True, max_tokens=7000)
    headers = {"X-Conversation": name}
    with cluster.client.stream("POST", CHAT, json=body, headers=headers) as answer:
        next(answer.iter_bytes())
    cluster.wait_for(name, "pyemo_cancelled_total", before + 1)


def test_what_a_lost_replica_had_not_begun_to_answer_is_answered_by_the_other(
    cluster: Cluster,
) -> None:
    (lost, (mine, other_of_lost)), (other, (theirs, _)) = cluster.conversations().items()
    short = long_chat(max_tokens=300)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(cluster.ask, mine, long_chat()) for _ in range(2)]
        cluster.wait_for(mine, "pyemo_running", 2)
        for name in (mine, other_of_lost):
            asked.append(pool.submit(cluster.ask, name, short))
            asked.append(pool.submit(cluster.ask, name, short | {"stream": True}))
        of_other = [pool.submit(cluster.ask, theirs, short) for _ in range(2)]
        cluster.wait_for(mine, "pyemo_queued", 4)
        kill(lost)
        answers = [one.result() for one in (*asked, *of_other)]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert {answer.headers["X-Replica"] for answer in answers} == {other}
    streams = [answer for answer in answers if answer.headers["Content-Type"] != WHOLE]
    ends = [events(stream.text)[-1]["choices"][0]["finish_reason"] for stream in streams]
    assert ends == ["length"] * 2
    wholes = [answer.json() for answer in answers if answer.headers["Content-Type"] == WHOLE]
    assert [whole["usage"]["completion_tokens"] for whole in wholes] == [1900] * 2 + [300] * 4


def test_a_lost_replica_cuts_off_what_it_streamed_and_is_replaced(cluster: Cluster) -> None:
    (lost, (name, _)), (other, _) = cluster.conversations().items()
    body = long_chat(stream=True, max_tokens=7000)
    headers = {"X-Conversation": name}
    with cluster.client.stream("POST", CHAT, json=body, headers=headers) as answer:
        parts = answer.iter_text()
        read = [next(parts)]
        kill(lost)
        with pytest.raises(httpx2.RemoteProtocolError):
            read.extend(parts)
    assert "[DONE]" not in "".join(read)
    replaced = set(cluster.conversations())
    assert lost not in replaced
    assert other in replaced
