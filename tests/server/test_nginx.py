"""Two servers behind nginx, by the example's file: streams, conversations, a replica that dies."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pages import ROOT, read
from server_process import Process
from serving import CHAT, chat, events, long_chat, second_turn, streamed_text

pytestmark = [
    pytest.mark.quality,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx: apt install nginx"),
]

# all that nginx wants to write is in the folder it is started in
AROUND = """
daemon off; error_log error.log; pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    add_header X-Replica $upstream_addr always;
    include {site};
}}
"""


class Behind:
    """nginx before two servers."""

    def __init__(self, stack: ExitStack, folder: Path, options: list[object]) -> None:
        self.replicas = [stack.enter_context(Process(*options)) for _ in range(2)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        site = read(ROOT / "examples" / "nginx.conf")
        ports = dict(zip((8081, 8082), map(port_of, self.replicas), strict=True))
        for example, port in {8080: self.url.rpartition(":")[2], **ports}.items():
            assert f"127.0.0.1:{example}" in site
            site = site.replace(f"127.0.0.1:{example}", f"127.0.0.1:{port}")
        folder.chmod(0o755)
        (folder / "site.conf").write_text(site)
        (folder / "nginx.conf").write_text(AROUND.format(site=folder / "site.conf"))
        words = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        process = stack.enter_context(subprocess.Popen(words))
        stack.callback(process.terminate)
        self.client = stack.enter_context(httpx2.Client(base_url=self.url, timeout=600))
        until = time.monotonic() + 20
        while True:
            try:
                assert self.client.get("/health").status_code == 200
                return
            except httpx2.ConnectError:
                assert time.monotonic() < until
                time.sleep(0.05)

    def ask(self, conversation: str, body: dict[str, Any]) -> httpx2.Response:
        """Ask as one conversation."""
        return self.client.post(CHAT, json=body, headers={"X-Conversation": conversation})


def port_of(server: Process) -> str:
    return server.url.rpartition(":")[2]


@pytest.fixture
def behind(tiny: Callable[..., Any], tmp_path: Path) -> Iterator[Behind]:
    options: list[object] = ["-m", tiny("llama").path, "--n-ctx", 8192, "--n-seq-max", 8]
    with ExitStack() as stack:
        yield Behind(stack, tmp_path, options)


def test_a_stream_comes_through_as_it_is_written(behind: Behind) -> None:
    body = long_chat(stream=True)
    times, text = [], ""
    with behind.client.stream("POST", CHAT, json=body) as answer:
        for part in answer.iter_text():
            times.append(time.monotonic())
            text += part
    assert len(times) > 10
    assert times[1] - times[0] < (times[-1] - times[0]) / 2
    assert streamed_text(events(text))


def test_a_conversation_stays_on_its_replica(behind: Behind) -> None:
    seen = set()
    for k in range(12):
        words = f"{k} the happy story hello world " * 20
        first = behind.ask(f"conversation {k}", chat(words))
        second = behind.ask(f"conversation {k}", second_turn(words, first))
        assert second.headers["X-Replica"] == first.headers["X-Replica"]
        assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 64
        seen.add(first.headers["X-Replica"])
    assert len(seen) == 2


def test_a_client_that_leaves_ends_its_reply(behind: Behind) -> None:
    def n_cancelled() -> float:
        return sum(one.metric("pyemo_cancelled_total") for one in behind.replicas)

    with behind.client.stream("POST", CHAT, json=long_chat(stream=True, max_tokens=7000)) as answer:
        next(answer.iter_bytes())
    until = time.monotonic() + 20
    while n_cancelled() == 0:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_a_lost_replica_had_not_begun_to_answer_is_answered_by_the_other(
    behind: Behind,
) -> None:
    lost, other = behind.replicas
    names = (f"conversation {k}" for k in itertools.count())
    of_lost = (
        name
        for name in names
        if behind.ask(name, chat()).headers["X-Replica"].endswith(port_of(lost))
    )
    three = list(itertools.islice(of_lost, 3))
    body = long_chat(max_tokens=1000)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(behind.ask, name, body) for name in three]
        while lost.metric("pyemo_running") == 0:
            time.sleep(0.005)
        lost.popen.kill()
        answers = [one.result() for one in asked]
    assert [answer.status_code for answer in answers] == [200] * 3
    # tried there, then here
    assert all(port_of(lost) in answer.headers["X-Replica"] for answer in answers)
    assert all(answer.headers["X-Replica"].endswith(port_of(other)) for answer in answers)
