"""Metrics in Prometheus' text format, made of a coordinator's figures. `scrapes` calls this in a thread.

Dashboards are built on the names and labels here: one that was published keeps its meaning. A label has few values: states,
outcomes, pools, and the resources that a pool's hosts offer; never runs, tasks or hosts. This is the only file that imports
prometheus_client, so that a coordinator without metrics never loads it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from daggyr_server import __version__
from daggyr_server.driver.figures import HOST_STATES, Figures

# https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_POOL = ("pool", "executor")


class Exposition(Collector):
    """What one coordinator exposes. Used by one thread at a time."""

    def __init__(self, executors: Mapping[str, str]) -> None:
        """`executors` has the executor's name of each pool that is configured."""
        self._executors = executors
        self._figures: Figures | None = None
        self._lag = 0.0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self, figures: Figures, lag: float) -> bytes:
        """The metrics, those of the process (CPU, memory, file descriptors) included. `lag` is the event loop's, in seconds."""
        self._figures, self._lag = figures, lag
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """What the registry calls for the metrics of the figures at hand."""
        figures = self._figures
        if figures is None:
            return
        yield _gauge("daggyr_build_info", "The coordinator's version.", ("version",), [((__version__,), 1)])
        yield _gauge(
            "daggyr_runs",
            "Runs in memory.",
            ("state",),
            [((state.name,), count) for state, count in figures.runs.items()],
        )
        yield _gauge(
            "daggyr_tasks",
            "Tasks of runs that have not ended, structural ones included.",
            ("state",),
            [((state.name,), count) for state, count in figures.tasks.items()],
        )
        yield GaugeMetricFamily(
            "daggyr_damaged_runs", "Runs that were found to be damaged in the tracker, or a part of them.", value=figures.damaged
        )
        yield from _of_pools(figures, self._executors)
        yield from _of_commits(figures)
        yield GaugeMetricFamily(
            "daggyr_event_loop_lag_seconds",
            "How late the event loop was at most in the last minute, sampled each second.",
            value=self._lag,
        )


def _of_pools(figures: Figures, executors: Mapping[str, str]) -> Iterable[Metric]:
    pools = [((pool.name, executors.get(pool.name, "")), pool) for pool in figures.pools]
    yield _gauge(
        "daggyr_pool_ready_tasks",
        "Tasks that only wait for capacity.",
        _POOL,
        [(labels, pool.ready) for labels, pool in pools],
    )
    yield _gauge(
        "daggyr_pool_hosts",
        "Hosts (of agent pools: agents). Paused ones are out of reach for now; awaited ones had attempts before a restart.",
        (*_POOL, "state"),
        [((*labels, state), pool.hosts[state]) for labels, pool in pools for state in HOST_STATES],
    )
    yield _gauge(
        "daggyr_pool_offered_units",
        "Units of a resource of the hosts that take attempts.",
        (*_POOL, "resource"),
        [((*labels, name), units) for labels, pool in pools for name, units in pool.offered.items()],
    )
    yield _gauge(
        "daggyr_pool_used_units",
        "Units of those that attempts need, attempts that were sent ahead included.",
        (*_POOL, "resource"),
        [((*labels, name), pool.used[name]) for labels, pool in pools for name in pool.offered],
    )
    ended = CounterMetricFamily(
        "daggyr_attempts_ended", "Attempts that ended since the coordinator started.", labels=(*_POOL, "outcome")
    )
    for labels, pool in pools:
        for outcome, count in pool.outcomes.items():
            ended.add_metric((*labels, outcome.name), count)
    yield ended


def _of_commits(figures: Figures) -> Iterable[Metric]:
    yield CounterMetricFamily(
        "daggyr_committed_records", "Records that the tracker took since the coordinator started.", value=figures.committed
    )
    bounds = [*map(str, figures.commit_bounds), "+Inf"]
    yield HistogramMetricFamily(
        "daggyr_commit_duration_seconds",
        "How long the tracker's commits took, until they were durable.",
        buckets=list(zip(bounds, itertools.accumulate(figures.commits), strict=True)),
        sum_value=figures.commit_seconds,
    )
    yield GaugeMetricFamily(
        "daggyr_tracker_trouble",
        "1 while nothing can be made durable, so that nothing new is started.",
        value=figures.trouble,
    )


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: list[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
