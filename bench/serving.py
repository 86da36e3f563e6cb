"""`pyemo serve` beside `llama-server` of the same llama.cpp: throughput, first tokens, gaps.

    python bench/serving.py --llama-server build/bin/llama-server [--models ...] [--pairs 20]
                            [--parts throughput alone prompt turns] [--budgets auto 32 48 64 96 128]

    throughput  16 clients at once, slots for all; tokens per second of all, unsteered
    alone       one client: time to the first token
    prompt      16 replies run, a prompt of 1,500 tokens comes in: its time to the first token, and
                the longest wait of a running reply for a token, for each row budget; the servers
                take turns
    turns       the second turn of a conversation of 1,000 tokens: time to the first token, as a
                share of a fresh server's

Both have the same file, slots, prompts, lengths (`ignore_eos`) and threads, prompt caches off but
for `turns`, and the clients run on the same cores. Without --llama-server only pyemo is measured.
Build it from the source that llama-cpp-python ships (its sdist, vendor/llama.cpp), since speed
depends on the version:

    cmake -S vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF \\
        -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    cmake --build build --target llama-server

Run nothing else beside it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Ratio, Value, median_of, value_of, write

from pyemo.files.catalog import resolve_model

MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
PARTS = ("throughput", "alone", "prompt", "turns")
N_CLIENTS, N_CTX, N_TOKENS = 16, 8192, 64
N_SLOTS = N_CLIENTS + 1  # room for the prompt that comes in
N_LONG = 1500
READY_S, WAIT_S = 120.0, 600.0
SENTENCE = "It was a long day in the old town, and nobody knew what to say about the weather. "


@dataclass(frozen=True)
class Answer:
    """When a streamed request was sent, and when its tokens came; seconds of perf_counter."""

    sent: float
    at: tuple[float, ...]

    @property
    def first_s(self) -> float:
        """Time to the first token."""
        return self.at[0] - self.sent

    def longest_wait(self, begin: float, end: float) -> float:
        """The longest time between two tokens that overlaps this span."""
        steps = zip(self.at, self.at[1:], strict=False)
        return max((b - a for a, b in steps if b >= begin and a <= end), default=0.0)


@dataclass(frozen=True)
class Gap:
    """A long prompt among replies, in seconds: its first token, a step before, the longest wait."""

    first_s: float
    step_s: float
    longest_s: float


@dataclass(frozen=True)
class Server:
    """A server that runs, and what a request to it says beside the prompt."""

    port: int
    extra: dict[str, Any]

    def ask(self, prompt: str, n_tokens: int, on_token: Callable[[], None] | None = None) -> Answer:
        """Stream a greedy completion."""
        body = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "stream": True}
        body["ignore_eos"] = True  # the same lengths
        header = {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        sent = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body | self.extra), header)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(500)!r}")
        at = []
        for line in response:
            choices = json.loads(line[6:]).get("choices") if line.startswith(b"data: {") else None
            if choices and choices[0]["text"]:
                at.append(time.perf_counter())
                if on_token is not None:
                    on_token()
        connection.close()
        return Answer(sent, tuple(at))

    def ask_all(self, prompts: Sequence[str], n_tokens: int) -> list[Answer]:
        """Stream completions to clients that begin at once."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self.ask(prompt, n_tokens), prompts))


@contextmanager
def running(command: Sequence[str], port: int, extra: dict[str, Any]) -> Iterator[Server]:
    """Start a server, and end it with the block."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen([*command, "--port", str(port)], stdout=quiet, stderr=quiet) as process:
        try:
            end = time.monotonic() + READY_S
            while not _is_ready(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[0]} did not start")
                time.sleep(0.1)
            yield Server(port, extra)
        finally:
            process.terminate()


def pyemo_server(path: Path, n_threads: int, *options: str) -> Any:
    """A server of ours."""
    command = [sys.executable, "-m", "pyemo", "serve", "-m", str(path), "--n-seq-max", str(N_SLOTS)]
    command += ["--n-ctx", str(N_CTX), "--threads", str(n_threads), *options]
    return running(command, _free_port(), {})


def llama_server(program: str, path: Path, n_threads: int, *, caches: bool = False) -> Any:
    """The other one, with one pool of cells for all slots as ours."""
    command = [program, "-m", str(path), "-np", str(N_SLOTS), "-c", str(N_CTX), "-t"]
    command += [str(n_threads), "-ub", "512", "-b", "2048", "--kv-unified"]
    return running(command, _free_port(), {"cache_prompt": caches})


class Pair:
    """One model on both servers."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.path = resolve_model(name).path
        self.settings = f"{options.threads} threads"

    def servers(self, stack: ExitStack, *options: str) -> dict[str, Server]:
        """Ours and, where it is given, the other one."""
        threads = self.options.threads
        found = {"pyemo": stack.enter_context(pyemo_server(self.path, threads, *options))}
        if program := self.options.llama_server:
            found["llama-server"] = stack.enter_context(llama_server(program, self.path, threads))
        return found

    def compared(self, name: str, measure: Callable[[Server], float], unit: str) -> list[Any]:
        """Measure both in turns; more is better."""
        with ExitStack() as stack:
            servers = self.servers(stack, "--no-prompt-cache")
            for server in servers.values():
                measure(server)
            order = random.Random(0)
            found: dict[str, list[float]] = {side: [] for side in servers}
            for _ in range(self.options.pairs):
                for side in order.sample(sorted(servers), len(servers)):
                    found[side].append(measure(servers[side]))
        ours = found["pyemo"]
        if len(servers) == 1:
            return [value_of(f"{self.name}: {name}", ours, unit, conditions=self.settings)]
        theirs = found["llama-server"]
        ratio = Ratio(
            f"{self.name}: {name}, pyemo serve / llama-server",
            *median_of(np.array(ours) / np.array(theirs)),
            float(np.median(ours)), float(np.median(theirs)), len(ours), self.settings,
        )  # fmt: skip
        print(ratio.row(), flush=True)
        return [ratio]

    def throughput(self) -> list[Any]:
        """Tokens per second of 16 clients."""
        prompts = [f"The history of the town number {k} begins" for k in range(N_CLIENTS)]

        def tokens_per_s(server: Server) -> float:
            begin = time.perf_counter()
            answers = server.ask_all(prompts, N_TOKENS)
            return sum(len(answer.at) for answer in answers) / (time.perf_counter() - begin)

        return self.compared(f"{N_CLIENTS} clients", tokens_per_s, "tokens/s")

    def alone(self) -> list[Any]:
        """First tokens per second of one client."""

        def firsts_per_s(server: Server) -> float:
            return 1 / server.ask(SENTENCE * 3, 2).first_s

        return self.compared("one client, first token", firsts_per_s, "first tokens/s")

    def prompt(self) -> list[Any]:
        """A long prompt beside running replies, for each row budget and the other server."""
        threads, path, program = self.options.threads, self.path, self.options.llama_server
        with ExitStack() as stack:
            servers = {}
            for budget in self.options.budgets:
                options = ["--no-prompt-cache"]
                if budget != "auto":
                    options += ["--row-budget", budget]
                server = stack.enter_context(pyemo_server(path, threads, *options))
                servers[f"row budget {budget}"] = server
            if program:
                servers["llama-server"] = stack.enter_context(llama_server(program, path, threads))
            found: dict[str, list[Gap]] = {side: [] for side in servers}
            order = random.Random(0)
            for _ in range(self.options.runs):
                for side in order.sample(sorted(servers), len(servers)):
                    found[side].append(self.gap(servers[side]))
        return [value for side, gaps in found.items() for value in self.gap_values(side, gaps)]

    def gap_values(self, side: str, gaps: Sequence[Gap]) -> list[Value]:
        """Time to the first token of the long prompt, and the waits of the others."""
        name = f"{self.name}, {side}: "
        settings = f"{N_CLIENTS} replies run, {N_LONG} tokens come, {self.settings}"
        firsts = [gap.first_s for gap in gaps]
        return [
            value_of(name + "first token", firsts, "s", conditions=settings),
            value_of(
                name + "first token, p95", [np.quantile(firsts, 0.95)], "s", conditions=settings
            ),
            value_of(
                name + "a step undisturbed", [gap.step_s for gap in gaps], "s", conditions=settings
            ),
            value_of(
                name + "longest wait / that step",
                [gap.longest_s / gap.step_s for gap in gaps],
                "",
                conditions=settings,
            ),
        ]

    def gap(self, server: Server) -> Gap:
        """Let a long prompt come while replies run."""
        n_before = 16
        begun = threading.Semaphore(0)

        def client(k: int) -> Answer:
            left = [n_before]

            def on_token() -> None:
                left[0] -= 1
                if left[0] == 0:
                    begun.release()

            return server.ask(f"The history of the town number {k} begins", 240, on_token)

        with ThreadPoolExecutor(N_SLOTS) as pool:
            replies = [pool.submit(client, k) for k in range(N_CLIENTS)]
            for _ in replies:
                begun.acquire()
            words = SENTENCE * (N_LONG // 18 + 1)
            long = server.ask(words, 1)
            answers = [reply.result() for reply in replies]
        steps = [
            b - a
            for answer in answers
            for a, b in zip(answer.at[4:], answer.at[5:], strict=False)
            if b < long.sent
        ]
        longest = max(answer.longest_wait(long.sent, long.at[0]) for answer in answers)
        return Gap(long.first_s, float(np.median(steps)), longest)

    def turns(self) -> list[Any]:
        """The second turn's share of a fresh server's time to the first token."""
        first = SENTENCE * (1000 // 18)
        second = first + "And then the rain began. "
        shares = []
        for _ in range(self.options.runs):
            with pyemo_server(self.path, self.options.threads) as server:
                fresh = server.ask(second, 1).first_s
            with pyemo_server(self.path, self.options.threads) as server:
                server.ask(first, 1)
                shares.append(server.ask(second, 1).first_s / fresh)
        return [value_of(f"{self.name}: second turn / fresh", shares, "", conditions=self.settings)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    """Measure, and write the results beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--llama-server", metavar="FILE")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5, help="of `prompt` and `turns`")
    parser.add_argument("--budgets", nargs="+", default=["auto", "32", "48", "64", "96", "128"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/serving")
    options = parser.parse_args()
    found: list[Any] = []
    for name in options.models:
        pair = Pair(name, options)
        for part in options.parts:
            found += getattr(pair, part)()
    ratios = [one for one in found if isinstance(one, Ratio)]
    write(options.output, ratios, [one for one in found if isinstance(one, Value)])


if __name__ == "__main__":
    main()
