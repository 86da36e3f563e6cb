"""The server as a process: streams, clients that leave or mean harm, signals."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import pyemo
from server_process import Process, posted
from serving import CHAT, chat, events, long_chat, streamed_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            data += part
    return data


@pytest.fixture(scope="module")
def options(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    model = tmp_path_factory.mktemp("model") / "llama.gguf"
    shutil.copy(tiny("llama").path, model)
    return ["-m", model, "--n-ctx", 4096, "--n-seq-max", 4, "--kv-type", "f32", "--read-timeout", 1]


@pytest.fixture(scope="module")
def folder(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's vectors, to which a test may add."""
    return Path(shutil.copytree(vectors, tmp_path_factory.mktemp("offered") / "vectors"))


@pytest.fixture(scope="module")
def server(options: list[object], folder: Path) -> Iterator[Process]:
    with Process(*options, "--vectors", folder) as process:
        yield process


def test_a_stream_comes_as_it_is_written(server: Process) -> None:
    began = time.monotonic()
    times = []
    with server.client.stream("POST", CHAT, json=long_chat(stream=True, max_tokens=400)) as answer:
        text = ""
        for part in answer.iter_text():
            times.append(time.monotonic() - began)
            text += part
    assert len(streamed_text(events(text))) > 600
    assert len(times) > 10
    assert times[0] < times[-1] / 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_ends_when_its_client_leaves(server: Process, stream: bool) -> None:
    body = long_chat(stream=stream, max_tokens=3900)  # seconds, if nobody left
    n_cancelled = server.metric("pyemo_cancelled_total")
    with server.connect() as connection:
        connection.sendall(posted(body))
        if stream:
            assert b"200 OK" in connection.recv(4096)
        else:
            while server.metric("pyemo_running") == 0:
                time.sleep(0.001)
    assert server.is_idle_within(10)
    end = time.monotonic() + 5  # it is counted a moment after its place is free
    while server.metric("pyemo_cancelled_total") == n_cancelled and time.monotonic() < end:
        time.sleep(0.01)
    assert server.metric("pyemo_cancelled_total") == n_cancelled + 1


def test_clients_that_leave_block_nobody(server: Process) -> None:
    gone = [server.connect() for _ in range(12)]
    for connection in gone:
        connection.sendall(posted(long_chat(stream=True)))
    for connection in gone:
        connection.close()
    assert server.is_well()
    assert server.is_idle_within(10)
    assert server.metric("pyemo_cells_used") == 0


@pytest.mark.parametrize(
    "head", [b"", b"POST ", b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "]
)
def test_a_client_that_never_sends_its_request_is_hung_up_on(server: Process, head: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(head)
        began = time.monotonic()
        read_all(connection)
    assert 0.5 < time.monotonic() - began < 15
    assert server.is_well()


def test_a_client_that_drips_its_head_is_hung_up_on(server: Process) -> None:
    began = time.monotonic()
    with server.connect() as connection, contextlib.suppress(OSError):
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        while time.monotonic() - began < 30:
            connection.sendall(b"X-A: b\r\n")
            time.sleep(0.1)
    assert time.monotonic() - began < 20


def test_a_body_that_never_comes_is_408(server: Process) -> None:
    with server.connect() as connection:
        connection.sendall(posted(chat(), length=5000))
        assert b"408" in connection.recv(4096)
    assert server.is_well()


def test_ten_thousand_headers_are_refused(server: Process) -> None:
    headers = b"".join(b"X-%d: y\r\n" % i for i in range(10_000))
    with server.connect() as connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers + b"\r\n")
        assert connection.recv(4096)[9:12] in (b"400", b"431")
    assert server.is_well()


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_what_is_no_http_is_refused(server: Process, data: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)
    assert server.is_well()


def test_a_half_closed_connection_leaves_nothing_behind(server: Process) -> None:
    with server.connect() as connection:
        connection.sendall(posted(long_chat(stream=True)))
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)
    assert server.is_idle_within(10)
    assert server.is_well()


def test_a_body_of_ten_megabytes_is_413(server: Process) -> None:
    assert server.client.post(CHAT, json=chat("x" * 10_000_000)).status_code == 413
    assert server.is_well()


def test_a_model_that_is_gone_from_disk_still_answers(
    options: list[object], server: Process
) -> None:
    path = Path(str(options[1]))
    kept = path.rename(path.with_suffix(".kept"))
    try:
        assert server.is_well()
    finally:
        kept.rename(path)


def test_a_port_that_is_taken_is_said(options: list[object], server: Process) -> None:
    port = server.url.rpartition(":")[2]
    result = pyemo("serve", *options, "--port", port)
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_sighup_reads_the_folder_again(server: Process, vectors: Path, folder: Path) -> None:
    assert server.client.post(CHAT, json=chat(steering="mine=0.1")).status_code == 400
    shutil.copy(vectors / "warm.gguf", folder / "mine.gguf")
    server.popen.send_signal(signal.SIGHUP)
    until = time.monotonic() + 20
    while server.client.post(CHAT, json=chat(steering="mine=0.1")).status_code == 400:
        assert time.monotonic() < until


# --- the end ---


@dataclass(frozen=True)
class Ended:
    """A server that a signal has ended while a stream ran.

    Attributes:
        first: the status of a request before.
        parts: what the stream sent.
        code, errors: of the process.
    """

    first: int
    parts: list[Any]
    code: int
    errors: str


def ended(server: Process, number: int, **fields: Any) -> Ended:
    """Ask, then send a signal once a stream runs, and wait for the end."""
    first = server.client.post(CHAT, json=chat())
    text = ""
    with server.client.stream("POST", CHAT, json=long_chat(stream=True, **fields)) as answer:
        for part in answer.iter_text():
            if not text:
                server.popen.send_signal(number)
            text += part
    code = server.popen.wait(30)
    return Ended(first.status_code, events(text), code, server.popen.communicate()[1].decode())


@pytest.fixture(scope="module")
def drained(options: list[object]) -> Ended:
    """A server at an open address that had time for its last stream."""
    with Process(*options, "--drain", 30, "--host", "0.0.0.0", "--no-auth") as server:
        return ended(server, signal.SIGTERM, max_tokens=400)


@pytest.fixture(scope="module")
def cut_off(
    options: list[object], tmp_path_factory: pytest.TempPathFactory
) -> dict[signal.Signals, Ended]:
    """Two servers of one cache folder, ended by a signal each and without time for a stream."""
    env = {**os.environ, "PYEMO_CACHE": str(tmp_path_factory.mktemp("cache"))}
    words = (*options, "--drain", 0)
    with Process(*words, env=env) as one, Process(*words, env=env) as other:
        return {
            number: ended(server, number)
            for number, server in ((signal.SIGTERM, one), (signal.SIGINT, other))
        }


def test_an_open_address_without_a_key_is_said(drained: Ended) -> None:
    assert "Warning: everybody who reaches 0.0.0.0 may use this server" in drained.errors


def test_sigterm_lets_a_stream_finish(drained: Ended) -> None:
    assert drained.parts[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert drained.code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_a_stream_by_name_when_its_time_is_up(
    cut_off: dict[signal.Signals, Ended], number: signal.Signals, code: int
) -> None:
    found = cut_off[number]
    assert found.parts[-2]["choices"][0]["finish_reason"] == "error"
    assert found.parts[-1]["error"]["code"] == "shutting_down"
    assert found.code == code
    assert "Traceback" not in found.errors


def test_two_servers_share_one_cache_folder(cut_off: dict[signal.Signals, Ended]) -> None:
    assert [found.first for found in cut_off.values()] == [200, 200]
