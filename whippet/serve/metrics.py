"""Figures for Prometheus, in its text format (prometheus.io, "Exposition formats", version 0.0.4).

Counted in the event loop alone, so nothing is locked; the engine's own counts are read from the worker.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from whippet.infer.worker import Figures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ENGINE = {
    "running": ("gauge", "requests that gain tokens"),
    "waiting": ("gauge", "requests that wait for a row or for room in the cache"),
    "requests": ("counter", "requests that the engine took"),
    "refused": ("counter", "requests that could never be answered"),
    "failed": ("counter", "requests that ended with an error of the engine"),
    "cancelled": ("counter", "requests that were ended early: a stop text came, or the client left"),
    "prompt_tokens": ("counter", "tokens of prompts"),
    "cached_tokens": ("counter", "tokens of prompts that were known from before"),
    "generated_tokens": ("counter", "tokens drawn"),
    "steps": ("counter", "steps of the engine"),
    "cache_used": ("gauge", "tokens in the cache"),
    "cache_size": ("gauge", "tokens that the cache can hold"),
}
"""Names of ``Figures``, their kind and their meaning."""


class Histogram:
    """How often a time was at most each of ``SECONDS``."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str, about: str) -> list[str]:
        """As Prometheus reads it."""
        made, total = [f"# HELP {name} {about}", f"# TYPE {name} histogram"], 0
        for count, bound in zip(self._counts, (*map(str, SECONDS), "+Inf"), strict=True):
            total += count
            made.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*made, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """What the routes count."""

    def __init__(self) -> None:
        self.responses: Counter[tuple[str, int]] = Counter()
        """By route and status; 499 where the client left before there was one."""
        self.first_token, self.whole = Histogram(), Histogram()

    def text(self, figures: Figures) -> str:
        """All figures, as Prometheus reads them."""
        lines = ["# HELP whippet_responses_total replies to HTTP requests", "# TYPE whippet_responses_total counter"]
        for (route, status), count in sorted(self.responses.items()):
            lines.append(f'whippet_responses_total{{route="{route}",status="{status}"}} {count}')
        for name, (kind, about) in ENGINE.items():
            full = f"whippet_{name}" + ("_total" if kind == "counter" else "")
            lines += [f"# HELP {full} {about}", f"# TYPE {full} {kind}", f"{full} {getattr(figures, name)}"]
        lines += ["# HELP whippet_healthy whether the engine answers", "# TYPE whippet_healthy gauge"]
        lines.append(f"whippet_healthy {int(figures.healthy)}")
        lines += self.first_token.lines("whippet_first_token_seconds", "time from a request to its first token")
        lines += self.whole.lines("whippet_reply_seconds", "time from a request to the end of its reply")
        return "\n".join(lines) + "\n"
