"""The sections of a dataset's page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pipelines.page import flow
from pipelines.page.dataset import histogram
from pipelines.page.dataset.content import Captions, DatasetPage, Group, Measure, Share, Sheet, Shown, Takedown, Work
from pipelines.page.markup import Html, join, tag, words
from pipelines.page.sections import image, section

SECTIONS = (
    ("flow", "Flow"),
    ("measures", "Measures and thresholds"),
    ("sheets", "Kept and rejected"),
    ("duplicates", "Duplicates"),
    ("captions", "Captions"),
    ("origin", "Licences and sources"),
    ("work", "Time and cost"),
    ("versions", "Versions"),
)
SECONDS_PER_HOUR = 3600
MOST_NAMED = 12  # choice: what stands open


def header(page: DatasetPage) -> Html:
    """What dataset this is."""
    items = (tag("div", tag("dt", name), tag("dd", value)) for name, value in page.figures)
    return tag(
        "header",
        tag("p", "Open SUPIR · dataset", class_="eyebrow"),
        tag("h1", page.title),
        tag("p", tag("code", page.address), f" as of {page.made_at}. {page.sample}", class_="lede"),
        tag("dl", *items, class_="figures"),
        tag("nav", *(tag("a", label, href=f"#{key}") for key, label in SECTIONS), aria_label="sections"),
    )


def all_sections(page: DatasetPage) -> Iterable[Html]:
    """In the order of the page."""
    yield _flow(page)
    yield _measures(page)
    yield _sheets(page)
    yield _duplicates(page)
    yield _captions(page.captions)
    yield _origin(page)
    yield _work(page)
    yield _versions(page)


def footer(page: DatasetPage) -> Html:
    return tag("footer", tag("p", f"Made {page.made_at}. This file needs nothing but itself."))


def _flow(page: DatasetPage) -> Html:
    if page.flow is None:
        return section("flow", "Flow", tag("p", "Nothing was ingested yet: ", tag("code", "pipelines/ingest.py"), class_="muted"))
    first, rest = page.removed[:MOST_NAMED], page.removed[MOST_NAMED:]
    gone = join([_shares("Taken down or in a test set", first) if first else "", _more(rest), _takedowns(page.takedowns)])
    return section(
        "flow", "Flow", tag("p", "Every row ends as kept, rejected for a reason, or failed with a message."), flow.draw(page.flow), gone
    )


def _more(rest: list[Share]) -> Html:
    """The others, folded."""
    if not rest:
        return Html("")
    named = (tag("li", f"{one.label} ({one.count:,})") for one in rest)
    return tag("details", tag("summary", f"{len(rest)} more"), tag("ul", *named), class_="fate")


def _takedowns(found: list[Takedown]) -> Html:
    """Who must not leave the dataset any more, and why."""
    if not found:
        return Html("")
    heads = tag("tr", *(tag("th", name, scope="col") for name in ("Taken down", "ids and addresses", "why", "among them")))
    rows = [
        tag("tr", tag("th", one.made_at, scope="row"), tag("td", f"{one.count:,}"), tag("td", one.why),
            tag("td", join((tag("code", some) for some in one.some), ", ")))
        for one in found
    ]  # fmt: skip
    return tag("div", tag("table", tag("thead", heads), tag("tbody", *rows), class_="takedowns"), class_="scroll")


def _measures(page: DatasetPage) -> Html:
    if not page.measures:
        return section(
            "measures",
            "Measures and thresholds",
            tag("p", "Nothing was measured yet: ", tag("code", "pipelines/curate.py"), class_="muted"),
        )
    lead = (
        "Is a threshold right? Look at the pictures nearest to it: those that were rejected (framed) should be bad, those below them, "
        "which were kept, worth learning from. Bars are kept rows, on top of them those that this threshold rejects, and pale what goes "
        "for another reason."
    )
    judged = [one for one in page.measures if one.limits]
    others = [one for one in page.measures if not one.limits]
    rest = join([tag("h3", "Measured, and not judged by"), tag("div", *map(histogram.draw, others), class_="charts")]) if others else ""
    return section("measures", "Measures and thresholds", tag("p", lead), *map(_judged, judged), rest)


def _judged(measure: Measure) -> Html:
    rejected, rows = sum(measure.rejected), sum(measure.rejected) + sum(measure.kept) + sum(measure.others)
    share = f"rejects {rejected:,} of {rows:,} ({100 * rejected / max(rows, 1):.2g} %) that nothing before it rejects"
    limits = [tag("p", one.origin, tag("br"), tag("code", one.flags), class_="muted") for one in measure.limits if one.flags]
    figure = tag("div", histogram.draw(measure), tag("p", share if rejected else "rejects nothing here", class_="muted"), *limits)
    sides = [[one for one in measure.near if one.kept == kept] for kept in (False, True)]
    shape = "near detail" if measure.magnified else "near"
    near = [tag("div", *map(_shown, some), class_=shape) for some in sides if some]
    if near and measure.magnified:
        near.append(tag("p", "Where each has the most detail, in its own pixels.", class_="muted"))
    return tag("article", figure, tag("div", *near) if near else tag("p", "No picture lies near it.", class_="muted"), class_="judged")


def _sheets(page: DatasetPage) -> Html:
    lead = "What was kept, then what was not, by reason. Counts are of the whole dataset."
    return section("sheets", "Kept and rejected", tag("p", lead), *(_sheet(sheet) for sheet in page.sheets))


def _sheet(sheet: Sheet) -> Html:
    summary = tag(
        "summary",
        tag("b", words(sheet.title)),
        tag("span", f" {sheet.count:,}", class_="count"),
        tag("small", f" {sheet.status}") if sheet.status != sheet.title else "",
    )
    said = tag("ul", *(tag("li", message) for message in sheet.messages)) if sheet.messages else ""
    shown = tag("div", *map(_shown, sheet.pictures), class_="sheet") if sheet.pictures else ""
    empty = (
        "" if sheet.messages or sheet.pictures else tag("p", "None of them lies in the shards whose pictures were opened.", class_="muted")
    )
    return tag("details", summary, shown, said, empty, class_=f"fate {sheet.status}", open=bool(sheet.pictures) and sheet.status == "kept")


def _duplicates(page: DatasetPage) -> Html:
    if not page.groups:
        return section("duplicates", "Duplicates", tag("p", "No group lies in the shards whose pictures were opened.", class_="muted"))
    lead = "The copy that was kept, and after it the ones that were not."
    return section("duplicates", "Duplicates", tag("p", lead), tag("div", *map(_group, page.groups), class_="duplicates"))


def _group(group: Group) -> Html:
    shown = ([group.winner] if group.winner else []) + group.losers
    return tag("div", *map(_shown, shown), class_="copies")


def _captions(captions: Captions | None) -> Html:
    if captions is None:
        return section("captions", "Captions", tag("p", "Nothing was captioned yet: ", tag("code", "pipelines/caption.py"), class_="muted"))
    lengths = tag("div", histogram.draw(captions.tokens), class_="charts") if captions.tokens else ""
    most = max([one.count for one in captions.words] + [1])
    cloud = tag(
        "p",
        join((tag("span", one.label, style=f"font-size:{0.8 + one.count / most:.2f}em") for one in captions.words), " "),
        class_="words",
    )
    cards = [tag("figure", image(one.picture), tag("figcaption", one.note)) for one in captions.shown]
    return section(
        "captions",
        "Captions",
        tag(
            "p", f"{captions.rows:,} captions by ", ", ".join(f"{one.label} ({one.count:,} of the sample)" for one in captions.engines), "."
        ),
        _shares("Rejected", [replace(one, label=words(one.label)) for one in captions.rejected]) if captions.rejected else "",
        tag("div", *map(_shown, captions.refused), class_="sheet") if captions.refused else "",
        lengths,
        tag("h3", "Most common words"),
        cloud,
        _said_twice(captions),
        tag("h3", "Beside their pictures"),
        tag("div", *cards, class_="cards"),
    )


def _said_twice(captions: Captions) -> Html:
    found = captions.twice
    among = f"all {found.compared:,}" if found.compared == captions.rows else f"{found.compared:,} of {captions.rows:,}"
    title = f"Said of more than one picture in nearly the same words: {found.near:,} among {among} captions"
    return _shares(title, found.groups) if found.groups else tag("p", f"Of {among} captions no two are nearly the same.", class_="muted")


def _origin(page: DatasetPage) -> Html:
    tables = [
        _shares(title, found)
        for title, found in (("Licences", page.licences), ("Sources", page.sources), ("Formats", page.formats))
        if found
    ]
    return section("origin", "Licences and sources", tag("div", *tables, class_="shares"))


def _shares(title: str, found: list[Share]) -> Html:
    most = max(one.count for one in found)
    rows = [
        tag("tr", tag("th", one.label, scope="row"), tag("td", f"{one.count:,}"), tag("td", _bar(one.count / most), class_="wide"))
        for one in found
    ]
    return tag("table", tag("caption", title), tag("tbody", *rows), class_="share")


def _bar(share: float) -> Html:
    return tag("div", class_="bar", style=f"width:{100 * share:.1f}%")


def _work(page: DatasetPage) -> Html:
    if not page.work:
        return section("work", "Time and cost", tag("p", "No commit tells how long it took.", class_="muted"))
    heads = ["Table", "rows", "shards", "worker hours", "rows per second and worker", "reading"]
    priced = page.price_per_hour > 0
    head = tag("tr", *(tag("th", name, scope="col") for name in [*heads, *(["cost per thousand"] if priced else [])]))
    rows = [tag("tr", *_work_cells(one, page.price_per_hour)) for one in page.work]
    return section(
        "work",
        "Time and cost",
        tag("p", "As the commits say: the work that stands, without what was lost on the way."),
        tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="numbers"), class_="scroll"),
    )


def _work_cells(one: Work, price_per_hour: float) -> list[Html]:
    hours = one.worker_s / SECONDS_PER_HOUR
    cells = [f"{one.rows:,}", f"{one.shards:,}", f"{hours:.3g}", f"{one.rows_per_worker_s:.3g}", f"{100 * one.read_s / one.worker_s:.0f} %"]
    if price_per_hour > 0:
        cells.append(f"{1000 * hours * price_per_hour / max(one.rows, 1):.3g}")
    return [tag("th", one.table, scope="row"), *(tag("td", cell) for cell in cells)]


def _versions(page: DatasetPage) -> Html:
    rows = [
        tag("tr", tag("th", table, scope="row"), tag("td", tag("code", version)), tag("td", tag("code", digest)))
        for table, version, digest in page.versions
    ]
    head = tag("tr", *(tag("th", name, scope="col") for name in ("Table", "version", "content digest")))
    lead = "Equal digests hold equal rows in equal order, whoever made them."
    return section(
        "versions", "Versions", tag("p", lead), tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll")
    )


def _shown(one: Shown) -> Html:
    note = tag("figcaption", one.note, title=one.note)  # of a long name two lines are shown
    return tag("figure", image(one.picture, loading="lazy"), note, class_=None if one.kept else "out")


__all__ = ["all_sections", "footer", "header"]
