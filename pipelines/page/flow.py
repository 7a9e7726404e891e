"""The ledger as a flow, drawn in SVG: what arrives on the left, what is kept on the right, what is lost branches down."""

from __future__ import annotations

from itertools import pairwise

from pipelines.page.content import Flow, FlowStep
from pipelines.page.markup import Html, join, tag, words

# choice: lengths in units of the drawing, 1000 wide
WIDTH, LEFT, RIGHT, TOP = 1000, 8, 210, 44
TRUNK, NODE, ROW, DROP = 190.0, 10, 30, 46
MINIMUM = 3.0  # a ribbon of one row in a million is still seen
LOSS_X = 120  # where the label of a loss stands, right of its step


def draw(flow: Flow) -> Html:
    """The whole figure, with a description for those who do not see it."""
    scale = TRUNK / max(1, flow.steps[0].count)
    step_x = (WIDTH - RIGHT - LEFT - NODE) / max(1, len(flow.steps) - (not flow.ends))
    xs = [LEFT + step_x * n for n in range(len(flow.steps) + 1)]
    rows = max((len(step.lost) for step in flow.steps), default=0)
    height = TOP + TRUNK + (DROP + rows * ROW if rows else 20)
    parts: list[Html] = []
    for (here, there), (step, following) in zip(pairwise(xs), _with_next(flow), strict=True):
        parts.append(_losses(step, here, scale))
        if following is not None:
            parts.append(_ribbon(here + NODE, TOP, there, TOP, following.count * scale, "kept"))
    parts.append(_ends(flow, xs[-2], xs[-1], scale))
    parts += [_node(step, x, scale) for step, x in zip(flow.steps, xs, strict=False)]
    drawing = tag("svg", tag("title", describe(flow)), *parts, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", class_="flow")
    return tag("div", drawing, class_="scroll", tabindex="0", role="group", aria_label="flow of rows, may be scrolled")


def describe(flow: Flow) -> str:
    """The figure in one sentence."""
    steps = ", ".join(f"{step.label} {step.count}" + _lost_words(step) for step in flow.steps)
    return steps + ("; " + ", ".join(f"{label} {count}" for label, count in flow.ends) if flow.ends else "")


def _lost_words(step: FlowStep) -> str:
    return " (lost: " + ", ".join(f"{words(lost.reason)} {lost.count}" for lost in step.lost) + ")" if step.lost else ""


def _with_next(flow: Flow) -> list[tuple[FlowStep, FlowStep | None]]:
    return list(zip(flow.steps, [*flow.steps[1:], None], strict=True))


def _node(step: FlowStep, x: float, scale: float) -> Html:
    bar = tag("rect", x=f"{x:.1f}", y=TOP, width=NODE, height=f"{max(MINIMUM, step.count * scale):.1f}", rx=2, class_="node")
    label = tag("text", tag("tspan", step.count, class_="count"), tag("tspan", f" {step.label}"), x=f"{x:.1f}", y=TOP - 14)
    return join([bar, label])


def _losses(step: FlowStep, x: float, scale: float) -> Html:
    """Ribbons from the lower end of a step's bar down to one labelled stub for each reason."""
    y = TOP + (step.count - sum(lost.count for lost in step.lost)) * scale
    parts: list[Html] = []
    for n, lost in enumerate(step.lost):  # in the order of the rows, so that no ribbon crosses another
        thick = max(MINIMUM, lost.count * scale)
        end_y = TOP + TRUNK + DROP + n * ROW
        parts.append(_ribbon(x + NODE, y, x + LOSS_X, end_y - thick / 2, thick, lost.status))
        label = tag("tspan", lost.count, class_="count"), tag("tspan", f" {words(lost.reason)}")
        parts.append(tag("text", *label, x=f"{x + LOSS_X + 8:.1f}", y=f"{end_y + 5:.1f}", class_=f"loss {lost.status}"))
        y += lost.count * scale
    return join(parts)


def _ends(flow: Flow, x: float, end_x: float, scale: float) -> Html:
    """The last step's rows, fanned out to what becomes of them."""
    y, gap = float(TOP), 26.0
    parts: list[Html] = []
    for n, (label, count) in enumerate(flow.ends):
        thick = max(MINIMUM, count * scale)
        kind = ("learnt", "held")[n % 2]
        parts.append(_ribbon(x + NODE, y, end_x, y + n * gap, thick, kind))
        parts.append(tag("rect", x=f"{end_x:.1f}", y=f"{y + n * gap:.1f}", width=NODE, height=f"{thick:.1f}", rx=2, class_=f"node {kind}"))
        middle = y + n * gap + thick / 2 + 5
        parts.append(
            tag("text", tag("tspan", count, class_="count"), tag("tspan", f" {label}"), x=f"{end_x + NODE + 10:.1f}", y=f"{middle:.1f}")
        )
        y += count * scale
    return join(parts)


def _ribbon(x0: float, y0: float, x1: float, y1: float, thick: float, kind: str) -> Html:
    """A band of even thickness from (x0, y0) to (x1, y1), its corners given at the upper edge."""
    middle = (x0 + x1) / 2
    there = f"M{x0:.1f},{y0:.1f} C{middle:.1f},{y0:.1f} {middle:.1f},{y1:.1f} {x1:.1f},{y1:.1f}"
    back = f"L{x1:.1f},{y1 + thick:.1f} C{middle:.1f},{y1 + thick:.1f} {middle:.1f},{y0 + thick:.1f} {x0:.1f},{y0 + thick:.1f} Z"
    return tag("path", d=f"{there} {back}", class_=f"ribbon {kind}")
