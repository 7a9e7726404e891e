"""A distribution in SVG: kept rows upward from the axis, the others on top of them, thresholds as lines."""

from __future__ import annotations

import math

from pipelines.page.dataset.content import Measure
from pipelines.page.markup import Html, join, tag, words

WIDTH, HEIGHT = 460, 170  # choice: two side by side on a page of 1040
LEFT, RIGHT, TOP, BOTTOM = 6, 6, 26, 24
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MEANINGS = {  # in a few words what docs/data.md defines
    "short_side": "pixels", "sharpness": "of the sharper tiles", "flatness": "share of tiles without detail",
    "noise": "grey levels", "overshoot": "halos beside edges", "cutoff": "true resolution, 1 is full",
    "blockiness": "traces of 8 x 8 blocks", "jpeg_quality": "of the last saving", "bits_per_pixel": "of the file",
    "dark_share": "share of black", "bright_share": "share of white", "entropy": "bits of the tones",
    "colourfulness": "0 grey, 45 quite, 100 extremely", "saturation": "0 grey, 1 pure", "border_px": "pixels of frame",
    "seam": "straight line across, 1 is all of it", "repeats": "share of equal neighbours", "text_area": "share under lines of text",
    "face_count": "faces", "face_px": "pixels, the largest face", "aesthetic": "1 to 10", "nsfw": "probability", "watermark": "probability",
    "phash_quality": "how clear the perceptual hash is",
}  # fmt: skip


def draw(measure: Measure) -> Html:
    """The figure, with a sentence for those who do not see it."""
    stacks = list(zip(measure.kept, measure.rejected, measure.others, strict=True))
    highest = max([sum(stack) for stack in stacks] + [1])
    width = PLOT_W / len(stacks)
    bars = []
    for n, stack in enumerate(stacks):
        foot = float(TOP + PLOT_H)
        for count, kind in zip(stack, ("kept", "rejected", "others"), strict=True):
            if count:
                tall = PLOT_H * count / highest
                foot -= tall
                bars.append(_bar(LEFT + n * width, foot, width, tall, kind))
    axis = tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=TOP + PLOT_H, y2=TOP + PLOT_H, class_="grid")
    drawing = tag(
        "svg", tag("title", describe(measure)), *bars, axis, _ends(measure), *_limits(measure), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img"
    )
    meaning = MEANINGS.get(measure.name, "") + (" (logarithmic)" if measure.logarithmic else "")
    return tag("figure", tag("figcaption", tag("b", words(measure.name)), tag("span", meaning)), drawing, class_="chart histogram")


def describe(measure: Measure) -> str:
    """The figure in one sentence."""
    said = "".join(f"; {limit.reason} {'below' if limit.side == 'min' else 'above'} {limit.value:.4g}" for limit in measure.limits)
    ends = f"from {measure.edges[0]:.4g} to {measure.edges[-1]:.4g}"
    counts = f"{sum(measure.kept)} kept, {sum(measure.rejected)} rejected by it, {sum(measure.others)} for other reasons"
    return f"{measure.name}: {counts}, {ends}{said}"


def number(value: float) -> str:
    """Three digits, and no exponent where a person would write none."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _bar(x: float, y: float, width: float, height: float, kind: str) -> Html:
    return tag(
        "rect", x=f"{x + 0.5:.1f}", y=f"{y:.1f}", width=f"{max(width - 1, 1):.1f}", height=f"{max(height, 1):.1f}", class_=f"bin {kind}"
    )


def _ends(measure: Measure) -> Html:
    low, high = measure.edges[0], measure.edges[-1]
    middle = math.sqrt(low * high) if measure.logarithmic else (low + high) / 2
    places = ((low, LEFT, "start"), (middle, LEFT + PLOT_W / 2, "middle"), (high, WIDTH - RIGHT, "end"))
    return join(tag("text", number(v), x=f"{x:.0f}", y=HEIGHT - 8, text_anchor=anchor, class_="tick") for v, x, anchor in places)


def _limits(measure: Measure) -> list[Html]:
    low, high = measure.edges[0], measure.edges[-1]
    found = []
    for limit in measure.limits:
        if measure.logarithmic:
            share = math.log(limit.value / low) / math.log(high / low) if limit.value > 0 else 0.0
        else:
            share = (limit.value - low) / (high - low)
        x = LEFT + PLOT_W * min(max(share, 0.0), 1.0)
        arrow = "◂ " if limit.side == "min" else ""
        label = f"{arrow}{words(limit.reason)} {'<' if limit.side == 'min' else '>'} {number(limit.value)}" + (
            " ▸" if limit.side == "max" else ""
        )
        anchor = "start" if share < 0.5 else "end"
        found.append(tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP - 6, y2=TOP + PLOT_H, class_="limit"))
        found.append(
            tag("text", label, x=f"{x + (5 if anchor == 'start' else -5):.1f}", y=TOP - 10, text_anchor=anchor, class_="limit-label")
        )
    return found
