"""Runs as one self-contained HTML page: what differs between their configurations, where each ended, and every curve over images seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from infra.metrics import Metric
from infra.tracking import TrackedRun

COLOURS = ("#2d7f78", "#c0563b", "#3f5fa8", "#b07d1e", "#8a4f8f", "#5b7d2a", "#a83f6b", "#5c646d")  # told apart, also in grey
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 210, 54, 26, 10
MOST_POINTS = 500  # choice: more is not seen at 400 pixels
HIDDEN = frozenset({"output", "input"})  # where a run lies is not what it is
STYLE = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #5c646d; --paper: #fbfaf7; --rule: #e0dcd3 }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e4dd; --soft: #9aa2aa; --paper: #14171a; --rule: #2e343a } }
body { margin: 0 auto; max-width: 1040px; padding: 40px 28px 60px; font: 16px/1.5 system-ui, sans-serif }
body { background: var(--paper); color: var(--ink) }
h1 { font: 600 38px/1.15 Charter, Georgia, serif } h2 { font: 600 24px/1.3 Charter, Georgia, serif; margin: 46px 0 10px }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 6px 22px 6px 0; border-bottom: 1px solid var(--rule); font-weight: 400; overflow-wrap: anywhere }
.ends th, .ends td { white-space: nowrap }
thead th, .soft { color: var(--soft) } b.best { border-bottom: 2px solid currentColor }
.scroll { overflow-x: auto }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px 30px }
figure { margin: 0 } figcaption { font-weight: 600; font-size: 14px } svg { width: 100%; display: block }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 8px }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round } line { stroke: var(--rule) }
text { font: 12px system-ui, sans-serif; fill: var(--soft) }
"""


def build(title: str, runs: Sequence[TrackedRun], made_at: str) -> str:
    """The page. Colours follow the order of the runs."""
    names = sorted({name for run in runs for name in run.curves} - {Metric.STEP})
    plots = "".join(plot(name, runs) for name in names)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1><p class="soft">{len(runs)} runs, {escape(made_at)}. This file needs nothing but itself.</p>
<h2>Where they ended</h2>{ends(runs, names)}
<h2>What differs</h2>{differences(runs)}
<h2>Curves over images seen</h2><div class="plots">{plots}</div></body></html>
"""


def ends(runs: Sequence[TrackedRun], names: Sequence[str]) -> str:
    """A row a run, a column a metric that more than one run has, or the only run; the better end is underlined."""
    shown = [name for name in names if sum(name in run.curves for run in runs) >= min(2, len(runs)) and name.count("/") < 2]
    best = {
        (experiment, name): better(name, [one.curves[name][-1][1] for one in runs if name in one.curves and one.experiment == experiment])
        for experiment in {run.experiment for run in runs}  # a loss of stage 1 says nothing of one of stage 2
        for name in shown
    }
    head = "".join(f"<th>{escape(name)}</th>" for name in ("run", "begun", "status", "images", *shown))
    rows = []
    for run, colour in zip(runs, COLOURS * len(runs), strict=False):
        last = max((points[-1][0] for points in run.curves.values() if points), default=0)
        key = f'<span class="key" style="background:{colour}"></span>'
        cells = [
            f'{key}{escape(run.name)} <span class="soft">{escape(run.run_id[:8])}</span>',
            escape(run.begun),
            escape(run.status.lower()),
            f"{last:,}",
        ]
        cells += [end(run, name, best[run.experiment, name]) for name in shown]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table class="ends"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def better(name: str, values: Sequence[float]) -> float | None:
    """The best of several ends of a metric that is better one way; None of a single one, or where no way is better."""
    judged = name in set(Metric) and (Metric(name).higher_is_better or name.startswith(("loss", "validation/loss")))
    if not judged or len(values) < 2:
        return None
    return max(values) if Metric(name).higher_is_better else min(values)


def end(run: TrackedRun, name: str, best: float | None) -> str:
    if name not in run.curves:
        return '<span class="soft">none</span>'
    value = run.curves[name][-1][1]
    return f'<b class="best">{value:.4g}</b>' if value == best else f"{value:.4g}"


def differences(runs: Sequence[TrackedRun]) -> str:
    """Parameters and tags that are not the same in all runs."""
    told = [{**run.params, **{f"tag {key}": value for key, value in run.tags.items()}} for run in runs]
    keys = sorted({key for one in told for key in one} - HIDDEN)
    differing = [key for key in keys if len({one.get(key) for one in told}) > 1]
    if not differing:
        return '<p class="soft">Nothing: configurations and tags are equal.</p>'
    head = "<th></th>" + "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    rows = "".join(
        f"<tr><th>{escape(key)}</th>" + "".join(f"<td>{escape(one.get(key, '-'))}</td>" for one in told) + "</tr>" for key in differing
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def plot(name: str, runs: Sequence[TrackedRun]) -> str:
    """One metric of every run that has it, over images seen."""
    lines = []
    for run, colour in zip(runs, COLOURS * len(runs), strict=False):
        points = [(seen, value) for seen, value in run.curves.get(name, ()) if math.isfinite(value)]
        if points:
            kept = points[:: max(1, math.ceil(len(points) / MOST_POINTS))]
            lines.append((run, colour, [*kept, points[-1]]))
    values = [value for _, _, points in lines for _, value in points]
    if not values:
        return ""
    low, high = min(values), max(values)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    furthest = max(x for _, _, points in lines for x, _ in points) or 1

    def at(x: float, value: float) -> str:
        across = LEFT + (WIDTH - LEFT - 8) * x / furthest
        return f"{across:.1f},{TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low):.1f}"

    drawn = "".join(
        f'<polyline points="{" ".join(at(*point) for point in points)}" stroke="{colour}"><title>{escape(run.name)}</title></polyline>'
        for run, colour, points in lines
    )
    foot = HEIGHT - BOTTOM
    axes = f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{foot}" y2="{foot}"/><line x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{foot}"/>'
    labels = (
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{high:.2g}</text>'
        f'<text x="{LEFT - 6}" y="{foot}" text-anchor="end">{low:.2g}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 8}" text-anchor="end">{furthest:,} images</text>'
    )
    told = f"{name}: " + ", ".join(f"{run.name} ends at {points[-1][1]:.4g}" for run, _, points in lines)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(told)}</title>{axes}{labels}{drawn}</svg>'
    return f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>"
