"""Curves of a training run in SVG: every step thin, the running mean bold."""

from __future__ import annotations

import math
from collections.abc import Callable

from pipelines.page.content import Curve
from pipelines.page.markup import Html, join, tag

Scale = Callable[[float], float]  # a value to a place in the drawing
WIDTH, HEIGHT = 460, 220  # choice: two side by side on a page of 1040
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 30
TICKS = 4  # choice: about so many lines across
SMOOTHED = 20  # choice: fewer points are joined as they are
MOST_POINTS = 600  # choice: more than this is not seen at 400 pixels


def draw(curve: Curve) -> Html:
    """One figure with axes, its title above it and a sentence for those who do not see it."""
    points = [(step, value) for step, value in curve.points if math.isfinite(value)]
    caption = tag("figcaption", tag("b", curve.title), tag("span", f" {curve.unit}") if curve.unit else "")
    if len(points) < 2:
        return tag("figure", caption, tag("p", "fewer than two steps were logged", class_="muted"), class_="chart")
    points = points[:: max(1, math.ceil(len(points) / MOST_POINTS))]
    mean = running_mean(points)
    low, high = _range(points, mean)
    to_x = _scale(points[0][0], points[-1][0], LEFT, WIDTH - RIGHT)
    to_y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    clipped = [(to_x(step), to_y(min(max(value, low), high))) for step, value in points]
    body = [
        _grid(low, high, to_y),
        _steps(points, to_x),
        _line(clipped, "raw"),
        _line([(to_x(step), to_y(min(max(v, low), high))) for step, v in mean], "mean"),
    ]
    drawing = tag("svg", tag("title", describe(curve.title, mean)), *body, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    return tag("figure", caption, drawing, class_="chart")


def running_mean(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential mean over about a tenth of the run, corrected for its start; a few points are left as they are."""
    if len(points) < SMOOTHED:
        return list(points)
    keep = 1 - 1 / max(2.0, len(points) / 10)
    total = weight = 0.0
    smooth = []
    for step, value in points:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append((step, total / weight))
    return smooth


def describe(title: str, mean: list[tuple[int, float]]) -> str:
    """The figure in one sentence, with the ends of the running mean."""
    early = mean[len(mean) // 10]
    return f"{title}: {early[1]:.3g} after {early[0]:,} images, {mean[-1][1]:.3g} after {mean[-1][0]:,} (running mean)"


def _range(points: list[tuple[int, float]], mean: list[tuple[int, float]]) -> tuple[float, float]:
    """From the least to the 98th percentile: one early spike must not flatten the rest."""
    values = sorted(value for _, value in points)
    high = max(values[min(len(values) - 1, int(0.98 * len(values)))], max(v for _, v in mean[len(mean) // 20 :]))
    low = 0.0 if 0 <= values[0] < 0.5 * high else values[0]
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _scale(a: float, b: float, to_a: float, to_b: float) -> Scale:
    return lambda value: to_a + (value - a) / ((b - a) or 1) * (to_b - to_a)


def nice_step(span: float, count: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that divides a span into about `count` parts."""
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= count)


def _grid(low: float, high: float, to_y: Scale) -> Html:
    step = nice_step(high - low, TICKS)
    values = [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    lines = [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{to_y(v):.1f}", y2=f"{to_y(v):.1f}", class_="grid") for v in values]
    labels = [tag("text", f"{v:.6g}", x=LEFT - 8, y=f"{to_y(v) + 4:.1f}", text_anchor="end", class_="tick") for v in values]
    return join(lines + labels)


def _steps(points: list[tuple[int, float]], to_x: Scale) -> Html:
    first, last = points[0][0], points[-1][0]
    ends = [(first, "start"), (last, "end")]
    return join(
        tag("text", f"{step:,} images", x=f"{to_x(step):.1f}", y=HEIGHT - 8, text_anchor=anchor, class_="tick") for step, anchor in ends
    )


def _line(points: list[tuple[float, float]], kind: str) -> Html:
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=kind)
