"""``pyemo serve`` in a process of its own, and requests to it as bytes."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import httpx2
from commands import start
from serving import CHAT, chat


class Process:
    """``pyemo serve`` on a free port; ``with`` ends it."""

    def __init__(self, *options: object, **more: Any) -> None:
        words = ["serve", "--json", "--port", 0, "--threads", 1, *options]
        self.popen = start(*words, **more)
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, self.popen.communicate()[1].decode()
        self.url = json.loads(line)["url"]
        self.client = httpx2.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.popen.kill()
        self.popen.communicate()

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=20)

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def cpu_s(self) -> float:
        """CPU seconds that the process has had; Linux."""
        text = Path(f"/proc/{self.popen.pid}/stat").read_text(encoding="utf-8")
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Memory that the process has now; Linux."""
        text = Path(f"/proc/{self.popen.pid}/status").read_text(encoding="utf-8")
        return next(
            int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS:")
        )

    def is_idle_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.metric("pyemo_running") + self.metric("pyemo_queued") > 0:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def is_well(self) -> bool:
        return self.client.post(CHAT, json=chat()).status_code == 200


def posted(body: dict[str, Any], *, length: int | None = None) -> bytes:
    """Return a request to :data:`CHAT` as bytes."""
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length or len(data)}"
    return head.encode() + b"\r\n\r\n" + data
