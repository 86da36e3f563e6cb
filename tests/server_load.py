"""Mixed requests of many clients to one server, each answer compared with a quiet server's."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
from server_process import Process
from serving import CHAT, chat

N_CLIENTS = 32
MOODS = ("", "warm=0.3", "cold=0.4", "warm=0.2 + cold=0.2")
PROMPTS = ("the happy story", "hello world", "story the", "happy")
OPTIONS = ("--n-ctx", 8192, "--n-seq-max", 16, "--kv-type", "f32")


class ServerLoad:
    """Requests to a server of a tiny model: whole, broken, given up at a random moment.

    Meanwhile the folder of vectors is changed and read again.

    Attributes:
        done: requests that were made.
        wrong: what should not have been, in words.
        resident: bytes of the server's memory after each hundred requests.
    """

    def __init__(self, server: Process, folder: Path) -> None:
        """Learn what a quiet server answers.

        Args:
            server: started with ``OPTIONS`` and ``--vectors folder``.
            folder: holds warm.gguf and cold.gguf; gets a spare.gguf.
        """
        self.done = 0
        self.wrong: list[str] = []
        self.resident: list[int] = []
        self._server, self._folder = server, folder
        self._lock = threading.Lock()
        self._wanted = {}
        for mood in MOODS:
            for prompt in PROMPTS:
                answer = server.client.post(CHAT, json=self._body(mood, prompt)).json()
                self._wanted[mood, prompt] = answer["choices"][0]["message"]["content"]
        assert len(set(self._wanted.values())) == len(self._wanted)
        # llama.cpp's buffers are resident from the first decode on that is so large: the largest
        whole = chat("the noise of the night " * 660, max_tokens=1)
        answer = server.client.post(CHAT, json=whole, timeout=600).json()
        assert answer["usage"]["prompt_tokens"] > 7800

    def run(self, goes_on: Callable[[int], bool]) -> None:
        """Ask with all clients as long as ``goes_on(requests so far)``; leave no answer open."""
        threads = [
            threading.Thread(target=self._work, args=(number, goes_on))
            for number in range(N_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = chat("the noise of the night " * 200, max_tokens=300)
        with contextlib.suppress(httpx2.TimeoutException):
            self._server.client.post(CHAT, json=last, timeout=0.01)

    def check_rest(self) -> None:
        """Add to ``wrong`` what stayed behind: work, cells, failures, memory."""
        server = self._server
        if not server.is_idle_within(10):
            self.wrong.append("replies run on that nobody waits for")
        # a second later nothing turns: what ran until then is not asked, only what runs after it
        time.sleep(1)
        before = server.cpu_s()
        time.sleep(2)
        if (used := server.cpu_s() - before) >= 0.2:
            self.wrong.append(f"an idle server took {used:.2f} s of 2")
        for name in ("pyemo_cells_used", "pyemo_failed_total"):
            if value := server.metric(name):
                self.wrong.append(f"{name} is {value:g}")
        if not server.is_well():
            self.wrong.append("the server does not answer")
        if self.resident[-1] > 1.03 * self.resident[0]:
            first, last = self.resident[0] / 1e6, self.resident[-1] / 1e6
            self.wrong.append(f"memory grew from {first:.0f} to {last:.0f} MB")

    @staticmethod
    def _body(mood: str, prompt: str) -> dict[str, object]:
        return chat(prompt, steering=mood, max_tokens=40)

    def _work(self, number: int, goes_on: Callable[[int], bool]) -> None:
        rng = random.Random(number)
        with httpx2.Client(base_url=self._server.url, timeout=120) as client:
            while True:
                with self._lock:
                    if not goes_on(self.done):
                        return
                    self.done += 1
                    if self.done % 100 == 0:
                        self.resident.append(self._server.resident_bytes())
                    is_time = self.done % 50 == 0
                try:
                    if is_time:
                        self._reload(rng)
                    self._ask(rng, client)
                except Exception as error:  # noqa: BLE001, told by who runs it
                    self.wrong.append(repr(error))

    def _reload(self, rng: random.Random) -> None:
        source = self._folder / f"{rng.choice(['warm', 'cold'])}.gguf"
        shutil.copy(source, self._folder / "spare.gguf")
        self._server.popen.send_signal(signal.SIGHUP)

    def _ask(self, rng: random.Random, client: httpx2.Client) -> None:
        mood, prompt = rng.choice(MOODS), rng.choice(PROMPTS)
        kind = rng.random()
        if kind < 0.05:
            answer = client.post(CHAT, content=b'{"messages": [')
            assert answer.status_code == 400
        elif kind < 0.38:
            long = chat("the noise of the night " * rng.choice([1, 50]), max_tokens=300,
                        stream=bool(rng.random() < 0.5))  # fmt: skip
            with contextlib.suppress(httpx2.TimeoutException):
                client.post(CHAT, json=long, timeout=rng.uniform(0.001, 0.2))
        else:
            answer = client.post(CHAT, json=self._body(mood, prompt))
            if answer.status_code == 429:
                return
            found = answer.json()["choices"][0]
            if found["message"]["content"] != self._wanted[mood, prompt]:
                self.wrong.append(f"{mood!r} {prompt!r}: {found}")
