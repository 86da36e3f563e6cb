"""Many clients for a while: nothing is lost or mixed up, and nothing stays behind."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from server_process import Process
from serving import CHAT, chat

N_CLIENTS = 32
N_REQUESTS = 500


@pytest.mark.quality
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_five_hundred_requests_leave_nothing_behind(
    tiny: Callable[..., Any], vectors: Path, tmp_path: Path
) -> None:
    shutil.copytree(vectors, tmp_path / "vectors")
    options = ["-m", tiny("llama").path, "--n-ctx", 8192, "--n-seq-max", 16, "--kv-type", "f32",
               "--vectors", tmp_path / "vectors"]  # fmt: skip
    moods = ["", "warm=0.3", "cold=0.4", "warm=0.2 + cold=0.2"]
    prompts = ["the happy story", "hello world", "story the", "happy"]
    wrong: list[str] = []
    resident: list[int] = []
    done = 0
    lock = threading.Lock()

    with Process(*options) as server:
        wanted = {}
        for mood in moods:
            for prompt in prompts:
                body = chat(prompt, steering=mood, max_tokens=40)
                answer = server.client.post(CHAT, json=body).json()
                wanted[mood, prompt] = answer["choices"][0]["message"]["content"]
        assert len(set(wanted.values())) == len(wanted)
        # llama.cpp's buffers are resident from the first decode on that is so large: the largest
        whole = chat("the noise of the night " * 660, max_tokens=1)
        answer = server.client.post(CHAT, json=whole, timeout=600).json()
        assert answer["usage"]["prompt_tokens"] > 7800

        def ask(rng: random.Random, client: httpx2.Client) -> None:
            mood, prompt = rng.choice(moods), rng.choice(prompts)
            body = chat(prompt, steering=mood, max_tokens=40)
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
                answer = client.post(CHAT, json=body)
                if answer.status_code == 429:
                    return
                found = answer.json()["choices"][0]
                if found["message"]["content"] != wanted[mood, prompt]:
                    wrong.append(f"{mood!r} {prompt!r}: {found}")

        def work(number: int) -> None:
            nonlocal done
            rng = random.Random(number)
            with httpx2.Client(base_url=server.url, timeout=120) as client:
                while True:
                    with lock:
                        if done >= N_REQUESTS:
                            return
                        done += 1
                        if done % 100 == 0:
                            resident.append(server.resident_bytes())
                        is_time = done % 50 == 0
                    if is_time:
                        spare = tmp_path / "vectors" / "spare.gguf"
                        shutil.copy(vectors / f"{rng.choice(['warm', 'cold'])}.gguf", spare)
                        server.popen.send_signal(signal.SIGHUP)
                    try:
                        ask(rng, client)
                    except Exception as error:  # noqa: BLE001, told below
                        wrong.append(repr(error))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(N_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = chat("the noise of the night " * 200, max_tokens=300)
        with contextlib.suppress(httpx2.TimeoutException):
            server.client.post(CHAT, json=last, timeout=0.01)
        assert server.is_idle_within(10)
        # a second later nothing turns: what ran until then is not asked, only what runs after it
        time.sleep(1)
        before = server.cpu_s()
        time.sleep(2)
        assert server.cpu_s() - before < 0.2
        assert server.metric("pyemo_cells_used") == 0
        assert server.metric("pyemo_failed_total") == 0
        assert server.is_well()
        assert wrong == []
        assert resident[-1] <= 1.03 * resident[0]
