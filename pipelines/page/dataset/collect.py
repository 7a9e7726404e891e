"""Read a dataset for its page. Counts come from commits and are whole; statistics and pictures come from a sample of shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

import numpy as np

from infra.dataset import Dataset, NoSuchTable
from infra.picture_addresses import is_address
from pipelines.page.content import Picture
from pipelines.page.corpus import flow_of, losses
from pipelines.page.dataset import measure, said
from pipelines.page.dataset.content import DatasetPage, Group, Measure, Share, Sheet, Shown, Takedown, Work
from pipelines.page.dataset.limits import limits
from pipelines.page.dataset.sample import DUPLICATES, Sample
from pipelines.page.markup import words
from pipelines.page.reading import AsItWas, shorten
from pipelines.recipes.report import DatasetReportConfig

MOST_SHARES = 12  # choice: lines of a table that are read
MOST_REMOVED = 500  # choice: the pictures of several test sets by their names, in 100 KB
MOST_MESSAGES = 6
REMOVED = ("taken_down", "contaminated")
TABLES = ("inputs", "images", "scores", "selections", "captions", "exports")


def collect(config: DatasetReportConfig, dataset: Dataset | None = None) -> DatasetPage:
    """Everything that the page shows, of `config.input` as it is now. Raises NoSuchTable if nothing was ingested."""
    dataset = dataset or AsItWas(config.input)
    if not dataset.tables():
        raise NoSuchTable(f"{config.input} holds no dataset: run pipelines/ingest.py first, or pass the folder that it wrote with --input")
    sample = Sample(dataset, statistics=config.statistics_shards, pictures=config.picture_shards)
    thresholds = limits(rule_of(dataset), sample.fates.values(), sample.measures)
    near = {
        name: measure.next_to(sample.measures[name], sample.reasons, sample.source_ids, found, sample.images)
        for name, found in thresholds.items()
    }
    fates = by_fate(sample, config.most)
    wanted = {one for ids in (*near.values(), *fates.values()) for one in ids} | set(winners(sample).values())
    pictures, details = sample.pictures(wanted, {one for name in near if name in measure.DETAILS for one in near[name]})
    return DatasetPage(
        title=config.title or dataset.store.url.rstrip("/").rsplit("/", 1)[-1],
        address=dataset.store.url,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        figures=figures(dataset),
        flow=flow_of(dataset),
        measures=measures(sample, thresholds, near, {False: pictures, True: details}),
        sheets=sheets(dataset, sample, fates, pictures),
        groups=groups(sample, pictures, config.most),
        licences=shares(row["licence"] or "not stated" for row in sample.rows("inputs", ["licence"])),
        sources=shares(origin(row["source_url"] or row["address"]) for row in sample.rows("inputs", ["source_url", "address"])),
        formats=shares(row["format"] for row in sample.rows("images", ["format"])),
        captions=said.captions(sample, pictures, config.most, config.compared_captions),
        work=list(work(dataset)),
        price_per_hour=config.price_per_hour,
        versions=[
            (table, found.version, found.digest) for table in dataset.tables() if dataset.has(table) for found in [dataset.snapshot(table)]
        ],
        sample=told_sample(sample),
        removed=removed(sample),
        takedowns=takedowns(dataset),
    )


def rule_of(dataset: Dataset) -> dict[str, object]:
    """The rule of the current selection; empty without one."""
    rule = dataset.snapshot("selections").config.get("rule", {}) if dataset.has("selections") else {}
    return rule if isinstance(rule, dict) else {}


def figures(dataset: Dataset) -> list[tuple[str, str]]:
    """The numbers at the head of the page."""
    found = []
    for table, label in (("inputs", "asked for"), ("images", "read"), ("selections", "kept"), ("captions", "captioned")):
        if dataset.has(table):
            snapshot = dataset.snapshot(table)
            found.append((label, f"{snapshot.ledger.accepted if table == 'selections' else snapshot.rows:,}"))
    if dataset.has("images"):
        found.append(("shards", f"{len(dataset.snapshot('images').shards):,}"))
    return found


def measures(
    sample: Sample, thresholds: dict[str, list[measure.Limit]], near: dict[str, list[str]], pictures: dict[bool, dict[str, Picture]]
) -> list[Measure]:
    """Those that the selection judges by come first, in the order of its reasons. `pictures`: whole ones, and (True) details."""
    names = [*thresholds, *(name for name in sample.measures if name not in thresholds)]
    found = []
    for name in names:
        values = dict(zip(sample.source_ids, sample.measures[name].tolist(), strict=True))
        shown = measure.beside(near.get(name, []), values, sample.fates, pictures[name in measure.DETAILS])
        found.append(measure.distribution(name, sample.measures[name], sample.reasons, thresholds.get(name, []), shown))
    return found


def by_fate(sample: Sample, most: int) -> dict[str, list[str]]:
    """Reason ("" for kept) -> source_ids of the picture shards, as many as are shown."""
    found: dict[str, list[str]] = {}
    for source_id in sample.images:
        reason = sample.fates.get(source_id, {"reason": ""})["reason"]
        if len(found.setdefault(reason, [])) < (2 * most if reason == "" else most):
            found[reason].append(source_id)
    return found


def sheets(dataset: Dataset, sample: Sample, fates: dict[str, list[str]], pictures: dict[str, Picture]) -> list[Sheet]:
    """What was kept, then what was not by reason, then what could not be read."""

    def shown(reason: str) -> list[Shown]:
        ids = [one for one in fates.get(reason, []) if one in pictures]
        notes = {one: sample.said(sample.fates[one]["value"]) if one in sample.fates and reason else sample.name(one) for one in ids}
        return [Shown(picture=pictures[one], kept=not reason, note=shorten(notes[one], 80)) for one in ids]

    table = "selections" if dataset.has("selections") else "images"
    whole = dataset.snapshot(table).ledger if dataset.has(table) else None
    found = [Sheet(title="kept", status="kept", count=whole.accepted if whole else 0, pictures=shown(""))]
    rejected = losses(whole) if whole and table == "selections" else []
    found += [Sheet(title=one.reason, status=one.status, count=one.count, pictures=shown(one.reason)) for one in rejected]
    for name in ("images", "scores"):
        told = messages(dataset, sample, name)
        found += [
            Sheet(title=one.reason, status=one.status, count=one.count, pictures=[], messages=told.get(one.reason, []))
            for one in (losses(dataset.snapshot(name).ledger) if dataset.has(name) else [])
        ]
    return found


def messages(dataset: Dataset, sample: Sample, table: str) -> dict[str, list[str]]:
    """Reason -> some messages of rows that a table could not take."""
    found: dict[str, list[str]] = {}
    for ref in sample.refs(table):
        for outcome in dataset.outcomes(ref):
            some = found.setdefault(outcome.reason, [])
            if len(some) < MOST_MESSAGES:
                some.append(shorten(outcome.detail or sample.name(outcome.row_id), 160))
    return found


def winners(sample: Sample) -> dict[str, str]:
    """source_id of a duplicate in the picture shards -> source_id of the copy that was kept, where that is in them too."""
    kept = {row["image_id"]: one for one, row in sample.images.items() if sample.fates.get(one, {"accepted": True})["accepted"]}
    found = {}
    for source_id, fate in sample.fates.items():
        if source_id in sample.images and fate["reason"] in DUPLICATES:
            winner = fate["value"] if fate["reason"] == DUPLICATES[0] else kept.get(fate["value"], "")
            if winner in sample.images:
                found[source_id] = winner
    return found


def groups(sample: Sample, pictures: dict[str, Picture], most: int) -> list[Group]:
    """Duplicates beside the copy that was kept."""
    losers: dict[str, list[str]] = {}
    for loser, winner in winners(sample).items():
        losers.setdefault(winner, []).append(loser)

    def shown(source_id: str, kept: bool) -> Shown:
        row = sample.images[source_id]
        note = f"{row['width']} x {row['height']}" + ("" if kept else f", {words(sample.fates[source_id]['reason'])}")
        return Shown(picture=pictures[source_id], kept=kept, note=note)

    return [
        Group(winner=shown(winner, True), losers=[shown(one, False) for one in copies if one in pictures])
        for winner, copies in sorted(losers.items(), key=lambda pair: -len(pair[1]))[:most]
        if winner in pictures
    ]


def removed(sample: Sample) -> list[Share]:
    """What was taken down or matched a test set, with what it matched."""
    named = (f"{row['reason']}: {row['value']}".removesuffix(": ") for row in sample.fates.values() if row["reason"] in REMOVED)
    return shares(named, MOST_REMOVED)


def takedowns(dataset: Dataset) -> list[Takedown]:
    """The newest lists, addresses before ids."""
    found = []
    for listed in dataset.takedown_lists()[:-MOST_SHARES - 1:-1]:
        some = sorted(listed["ids"], key=lambda one: (not is_address(one), -len(one), one))[:MOST_MESSAGES]
        found.append(Takedown(made_at=listed.get("made_at", "")[:10], why=shorten(listed["why"], 160), count=len(listed["ids"]),
                              some=[shorten(one, 120) for one in some]))
    return found


def shares(values: Iterator[str], most: int = MOST_SHARES) -> list[Share]:
    """The most frequent values; the rest in one line."""
    counts = Counter(values)
    first = [Share(label=label, count=count) for label, count in counts.most_common(most)]
    rest = sum(counts.values()) - sum(one.count for one in first)
    return [*first, Share(label=f"{len(counts) - len(first)} others", count=rest)] if rest else first


def origin(address: str) -> str:
    """Where a picture came from: a host, a bucket, or this machine."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.hostname or ''}" if parts.scheme and parts.hostname else "local files"


def work(dataset: Dataset) -> Iterator[Work]:
    """Seconds of workers by table, as the commits say."""
    for table in TABLES:
        if dataset.has(table):
            refs = dataset.snapshot(table).shards.values()
            seconds = [(ref.timings.get("total_s", 0.0), ref.timings.get("read_s", 0.0)) for ref in refs]
            total_s, read_s = np.sum(seconds, axis=0).tolist() if seconds else (0.0, 0.0)
            if total_s:
                yield Work(table=table, rows=sum(ref.ledger.total for ref in refs), shards=len(refs), worker_s=total_s, read_s=read_s)


def told_sample(sample: Sample) -> str:
    """What was looked at, in words."""
    return " ".join(filter(None, [_told_shards(sample), _told_age(sample.dataset)]))


def _told_age(dataset: Dataset) -> str:
    """A selection that was made before images came or were taken down counts other rows than the flow."""
    if not (dataset.has("images") and dataset.has("selections")):
        return ""
    selected, measured = dataset.snapshot("selections").ledger.total, dataset.snapshot("images").rows
    unread = sum(dataset.snapshot("scores").ledger.failed.values()) if dataset.has("scores") else 0
    if selected + unread == measured:
        return ""
    return f"The selection is older than the images ({selected:,} rows of {measured:,}): run pipelines/curate.py again."


def _told_shards(sample: Sample) -> str:
    if len(sample.picture_shards) == sample.total:
        return f"All {sample.total} shards were read."
    return (
        f"Counts are of the whole dataset. Distributions come from {len(sample.shards)} of {sample.total} shards, evenly spaced, and "
        f"pictures from {len(sample.picture_shards)} of those."
    )
