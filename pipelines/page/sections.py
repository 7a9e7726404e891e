"""The sections of the page, each a function from content to markup. A section without content says which job fills it."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from pipelines.page import curves, flow
from pipelines.page.content import CommandRun, Evaluation, Page, Picture, Reject, Restoration, Scored, Training
from pipelines.page.markup import Html, join, link, tag, words

BUDGET_S = 480  # the eight minutes on two cores


def header(page: Page) -> Html:
    """What this is, and the plain words about what it can do."""
    lede = tag(
        "p",
        "Every picture, number and curve on this page was made by the commands at its end, on this machine: photographs were "
        "collected, sorted out and captioned; an encoder and an adaptor were trained on what was kept; photographs that no "
        "training saw were degraded, restored and scored. The same commands take a cluster and weights of the real size.",
        class_="lede",
    )
    return tag(
        "header",
        tag("p", "Open SUPIR", class_="eyebrow"),
        tag("h1", page.title),
        tag("div", lede, _plain_words(page), class_="opening"),
        _figures(page),
        _navigation(),
    )


def _figures(page: Page) -> Html:
    items = list(page.network)
    seconds = [run.seconds for run in page.commands if run.seconds is not None]
    if seconds:
        items.append(("this chain took", _duration(sum(seconds))))
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in items), class_="figures")


def _plain_words(page: Page) -> Html:
    return tag(
        "aside",
        tag("h2", "What a network of this size can and cannot do"),
        tag(
            "p",
            "SUPIR samples with 3.9 billion parameters that have seen 20 million photographs. This network has a few million and has seen "
            "a few dozen, for minutes on two processor cores. At its best it takes some noise, blocking and blur away. ",
            tag("strong", "It does not invent convincing detail"),
            ": no faces, no lettering, no fur. What leaves it is soft, and by PSNR it need "
            "not beat its own input. The page shows that the chain works from end to end, not what a full-sized model restores.",
        ),
        tag("p", verdict(page.evaluations)) if page.evaluations else "",
        class_="plain",
    )


def verdict(evaluations: list[Evaluation]) -> str:
    """What the scores of this run say, in one sentence, whichever way they fell."""
    pairs = [(_state(e, "degraded"), _state(e, "restored")) for e in evaluations]
    gains = [after.psnr - before.psnr for before, after in pairs if before and after and before.psnr is not None and after.psnr is not None]
    if not gains:
        return "No photograph was scored in this run."
    better, mean = sum(gain > 0 for gain in gains), fmean(gains)
    direction = "nearer to" if mean > 0 else "further from"
    return (
        f"In this run the restored pictures are on average {abs(mean):.2f} dB {direction} the originals than the degraded ones they were "
        f"made from; {better} of {len(gains)} came nearer."
    )


def _navigation() -> Html:
    names = (
        ("scores", "Held-out photographs"),
        ("corpus", "Corpus"),
        ("captions", "Captions"),
        ("negatives", "Negatives"),
        ("training", "Training"),
        ("restored", "Restored"),
        ("commands", "Commands"),
        ("credits", "Photographs by"),
    )
    return tag("nav", *(tag("a", label, href=f"#{key}") for key, label in names), aria_label="sections")


def scores(page: Page) -> Html:
    """Held-out photographs: the table of means, then each photograph."""
    if not page.evaluations:
        return section("scores", "Held-out photographs", _empty("pipelines/score.py"))
    lead = (
        "No training saw these. Each was degraded, taken through the encoder and decoder alone (stage 1), and restored. "
        "Drag the handle to compare; choose a picture to put it on the right of it."
    )
    rows = [_strip(e.name, words(e.degradation), e.states, "") for e in page.evaluations]
    protocol = ", ".join(f"{key} {value}" for key, value in page.protocol.items())
    return section(
        "scores",
        "Held-out photographs",
        tag("p", lead),
        _means(page.evaluations),
        *rows,
        tag("p", f"Protocol: {protocol}.", class_="muted"),
    )


def _means(evaluations: list[Evaluation]) -> Html:
    labels = [state.label for state in evaluations[0].states if state.psnr is not None]
    head = tag("tr", tag("th", "Mean over photographs", scope="col"), tag("th", "PSNR, dB", scope="col"), tag("th", "SSIM", scope="col"))
    body = []
    for label in labels:
        found = [state for e in evaluations for state in e.states if state.label == label]
        psnr = fmean(state.psnr for state in found if state.psnr is not None)
        ssim = fmean(state.ssim for state in found if state.ssim is not None)
        body.append(tag("tr", tag("th", label, scope="row"), tag("td", f"{psnr:.2f}"), tag("td", f"{ssim:.3f}")))
    return tag("table", tag("thead", head), tag("tbody", *body), class_="numbers")


def _strip(name: str, detail: str, states: list[Scored], caption: str) -> Html:
    """One photograph in all its states; the script turns the pictures into a comparison with a handle."""
    figures = [tag("figure", image(s.picture, data_label=s.label), tag("figcaption", tag("b", s.label), _measured(s))) for s in states]
    title = tag("h3", name, tag("small", f" {detail}" if detail else ""))
    return tag(
        "article",
        title,
        tag("p", caption) if caption else "",
        tag("div", tag("div", *figures, class_="states"), class_="pair"),
        class_="strip",
    )


def _measured(state: Scored) -> Html:
    if state.psnr is None or state.ssim is None:
        return Html("")
    return tag("span", f"{state.psnr:.2f} dB · {state.ssim:.3f}", title="PSNR in dB and SSIM against the original")


def corpus(page: Page) -> Html:
    """The ledger as a flow, and everything that was not kept."""
    if page.flow is None:
        return section("corpus", "Corpus", _empty("pipelines/ingest.py and pipelines/curate.py"))
    lead = "No row vanishes: whatever was asked for is kept, rejected for a reason, or failed with a message."
    groups: dict[str, list[Reject]] = {}
    for reject in page.rejects:
        groups.setdefault(reject.reason, []).append(reject)
    lost = [
        tag("div", tag("h4", words(reason), tag("small", f" {found[0].status}")), *map(_reject, found), class_=f"group {found[0].status}")
        for reason, found in groups.items()
    ]
    return section("corpus", "Corpus", tag("p", lead), flow.draw(page.flow), tag("h3", "Not kept"), tag("div", *lost, class_="groups"))


def _reject(reject: Reject) -> Html:
    shown = image(reject.picture) if reject.picture else tag("div", "no picture", class_="unreadable")
    return tag("figure", shown, tag("figcaption", tag("b", reject.name), tag("span", reject.value)))


def captions(page: Page) -> Html:
    """Every kept photograph with its caption."""
    if not page.captions:
        return section("captions", "Captions", _empty("pipelines/caption.py"))
    engines = ", ".join(sorted({c.engine for c in page.captions}))
    lead = (
        f"Written by the captioner “{engines}”. On this machine that is the one that needs no weights and states what can be measured; "
        "where LLaVA is on disk, the same command takes it."
    )
    cards = [
        tag("figure", image(c.picture), tag("figcaption", c.caption, tag("em", " held out") if c.held_out else "")) for c in page.captions
    ]
    return section("captions", "Captions", tag("p", lead), tag("div", *cards, class_="cards"))


def negatives(page: Page) -> Html:
    """Negative samples beside their parents."""
    if not page.negatives:
        return section("negatives", "Negatives", _empty("pipelines/negatives.py"))
    lead = (
        "The adaptor learns what bad pictures look like, so that sampling can be steered away from them: photographs taken half-way to "
        "noise and back under a prompt of faults. The tiny prior makes them soft and smeared rather than painted."
    )
    prompts = sorted({n.prompt for n in page.negatives})
    pairs = [
        tag("div", image(n.parent) if n.parent else "", image(n.picture), tag("p", n.settings), class_="negative") for n in page.negatives
    ]
    said = tag("blockquote", *(tag("p", f"“{prompt}”") for prompt in prompts))
    return section("negatives", "Negatives", tag("p", lead), said, tag("div", *pairs, class_="cards wide"))


def training(page: Page) -> Html:
    """Curves of both stages."""
    if not page.trainings:
        return section("training", "Training", _empty("training/train_encoder.py and training/train_adaptor.py"))
    where = (
        tag(
            "p",
            "All of it, with gradient norms, rates, memory and validation pictures, is in MLflow: ",
            tag("code", page.mlflow),
            ". Open it with ",
            tag("code", "make mlflow"),
            ".",
        )
        if page.mlflow
        else ""
    )
    return section("training", "Training", *(_run(run) for run in page.trainings), where)


def _run(run: Training) -> Html:
    facts = (
        tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in run.facts), class_="figures small")
        if run.facts
        else ""
    )
    return join(
        [tag("h3", run.title), tag("p", run.what), facts, tag("div", *(curves.draw(curve) for curve in run.curves), class_="charts")]
    )


def restored(page: Page) -> Html:
    """Pictures that have no known original."""
    if not page.restorations:
        return section("restored", "Restored from a folder", _empty("pipelines/restore.py"))
    lead = "Small, compressed pictures as people have them. There is nothing to measure against, so there are no numbers: look."
    return section("restored", "Restored from a folder", tag("p", lead), *(_restoration(r) for r in page.restorations))


def _restoration(one: Restoration) -> Html:
    return _strip(one.name, "", one.states, one.caption)


def commands(page: Page) -> Html:
    """What was typed, and what it cost."""
    if not page.commands:
        return section("commands", "Commands", _empty("make demo"))
    slowest = max([run.seconds or 0 for run in page.commands] + [1e-9])
    total = sum(run.seconds or 0 for run in page.commands)
    lead = tag(
        "p",
        "The chain, in order. Type any of them again: each finds what is done and does the rest. "
        f"Together {_duration(total)} of the {_duration(BUDGET_S)} that they may take on two cores.",
    )
    shared = (
        [tag("pre", tag("code", "\n".join(f"export {key}={value}" for key, value in page.environment.items())), tabindex="0")]
        if page.environment
        else []
    )
    prior = tag(
        "p",
        "The prior that they start from ships with the repository (",
        tag("code", "priors/tiny"),
        "); ",
        tag("code", "python training/train_prior.py --recipe tiny"),
        " makes it anew, which takes longer than all of this.",
        class_="muted",
    )
    return section(
        "commands", "Commands", lead, *shared, prior, tag("ol", *(_command(run, slowest) for run in page.commands), class_="commands")
    )


def _command(run: CommandRun, slowest: float) -> Html:
    cost = [f"{run.seconds:.0f} s" if run.seconds is not None else run.note, f"{run.peak_gib:.1f} GiB" if run.peak_gib else ""]
    share = 100 * (run.seconds or 0) / slowest
    bar = tag("div", class_="bar", style=f"width:{share:.1f}%")
    title = tag("p", tag("b", run.job), tag("span", " · ".join(filter(None, cost))), class_="cost")
    return tag("li", title, bar, tag("pre", tag("code", run.command), tabindex="0"))


def credits(page: Page) -> Html:
    """Authors and licences of the photographs that stand on this page."""
    if not page.credits:
        return section("credits", "Photographs by", _empty("pipelines/ingest.py"))
    lead = "All pictures on this page are made from these, changed as the sections say: shrunk, cropped, degraded, restored."
    head = tag("tr", *(tag("th", name, scope="col") for name in ("Photograph", "By", "Licence")))
    rows = [
        tag("tr", tag("td", link(c.source_url, c.name)), tag("td", c.author), tag("td", link(c.licence_url, c.licence)))
        for c in page.credits
    ]
    return section(
        "credits", "Photographs by", tag("p", lead), tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll")
    )


def footer(page: Page) -> Html:
    """When it was made, and what could not be shown."""
    gaps = tag("p", "Not in this workspace: ", "; ".join(page.missing), ".") if page.missing else ""
    return tag("footer", gaps, tag("p", f"Made {page.made_at}. This file needs nothing but itself."))


def section(key: str, title: str, *children: object) -> Html:
    """A section with its heading."""
    return tag("section", tag("h2", title), *children, id=key)


def _empty(job: str) -> Html:
    return tag("p", "Nothing here yet: ", tag("code", job), " fills this section.", class_="muted")


def image(picture: Picture, **attributes: object) -> Html:
    """A picture that keeps its place while the page loads."""
    return tag("img", src=picture.src, alt=picture.alt, width=picture.width, height=picture.height, decoding="async", **attributes)


def _state(evaluation: Evaluation, label: str) -> Scored | None:
    return next((state for state in evaluation.states if state.label.lower() == label), None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes and rest else f"{minutes} min" if minutes else f"{rest} s"


def all_sections(page: Page) -> Iterable[Html]:
    """In the order of the page: first what one came to see, then how it was made."""
    return (f(page) for f in (scores, corpus, captions, negatives, training, restored, commands, credits))
