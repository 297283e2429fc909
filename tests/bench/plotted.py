"""A plot of what a task costs as runs grow, as SVG: logarithmic both ways, a line for each tracker. Used by scale.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 45, 40, 50
_COLOURS = ("#1b6ca8", "#c8553d", "#3d8361")


def plot(rows: Sequence[Mapping[str, object]]) -> str:
    """`rows` have `tracker`, `tasks` and `seconds`. The document stands for itself."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        tasks, seconds = float(str(row["tasks"])), float(str(row["seconds"]))
        lines.setdefault(str(row["tracker"]), []).append((tasks, 1e6 * seconds / tasks))
    points = [point for line in lines.values() for point in line]
    x_range = _decades(tasks for tasks, _ in points)
    y_range = _decades(cost for _, cost in points)

    def x(tasks: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log10(tasks) - x_range[0]) / (x_range[1] - x_range[0])

    def y(cost: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (math.log10(cost) - y_range[0]) / (y_range[1] - y_range[0])

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">Microseconds a task, from accepted to COMPLETED, by the size of the run</text>',
    ]
    for power in range(x_range[0], x_range[1] + 1):
        at = x(10.0**power)
        drawn.append(f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{_HEIGHT - _BOTTOM}" stroke="#ddd"/>')
        drawn.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{10**power:,}</text>')
    for power in range(y_range[0], y_range[1] + 1):
        at = y(10.0**power)
        drawn.append(f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}" stroke="#ddd"/>')
        drawn.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:,.0f}</text>')
    drawn.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">tasks in the run</text>')
    for (tracker, line), colour in zip(lines.items(), _COLOURS, strict=False):
        path = " ".join(f"{x(tasks):.1f},{y(cost):.1f}" for tasks, cost in line)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x(tasks):.1f}" cy="{y(cost):.1f}" r="3" fill="{colour}"/>' for tasks, cost in line]
        tasks, cost = line[0]
        drawn.append(f'<text x="{x(tasks) + 6:.1f}" y="{y(cost) - 8:.1f}" fill="{colour}">{tracker}</text>')
    return "\n".join([*drawn, "</svg>", ""])


def _decades(values: object) -> tuple[int, int]:
    found = [math.log10(value) for value in values]  # type: ignore[attr-defined]
    low, high = math.floor(min(found)), math.ceil(max(found))
    return low, max(high, low + 1)
