"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from pyemo.engine.scheduler import Scheduler
from pyemo.engine.tickets import Ticket

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_OfScheduler(scheduler))
        self.answers = Counter(
            "pyemo_answers",
            "Answers by route and status",
            ["route", "status"],
            registry=self._registry,
        )
        self._first = Histogram(
            "pyemo_first_token_seconds",
            "From the request's arrival to its first token",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._rate = Histogram(
            "pyemo_decode_tokens_per_second",
            "Of one reply, after its first token",
            buckets=_RATES,
            registry=self._registry,
        )
        self._guard = Counter(
            "pyemo_guard_steps", "Times that a guard went back", registry=self._registry
        )

    def ended(self, ticket: Ticket, n_guard_steps: int) -> None:
        """Count a reply that has ended."""
        if ticket.first_token is not None:
            self._first.observe(ticket.first_token - ticket.submitted)
            took = (ticket.ended or ticket.first_token) - ticket.first_token
            if took > 0 and len(ticket.tokens) > 1:
                self._rate.observe((len(ticket.tokens) - 1) / took)
        self._guard.inc(n_guard_steps)

    def page(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)


class _OfScheduler:
    """The scheduler's own numbers, read when somebody asks."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterable[Metric]:
        stats = self._scheduler.stats()
        for name, text, value in (
            ("pyemo_queued", "Requests that wait", stats.queued),
            ("pyemo_running", "Replies that are read or written", stats.running),
            ("pyemo_cells_used", "Tokens of running replies in the KV cache", stats.n_cells_used),
            ("pyemo_cells_kept", "Tokens of ended ones, kept for prompts", stats.n_cells_kept),
        ):
            yield GaugeMetricFamily(name, text, value)
        for name, text, value in (
            ("pyemo_tokens_out", "Tokens written", stats.n_tokens_out),
            ("pyemo_prompt_tokens", "Tokens of prompts", stats.n_prompt_tokens),
            ("pyemo_cached_tokens", "Tokens of prompts not read again", stats.n_cached_tokens),
            ("pyemo_cancelled", "Replies whose client left", stats.n_cancelled),
            ("pyemo_failed", "Replies that met an error", stats.n_failed),
        ):
            yield CounterMetricFamily(name, text, value)
