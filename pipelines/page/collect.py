"""Read a workspace: datasets, training runs, the record of commands. What is not there is named, not invented."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from infra.dataset import Dataset, Snapshot
from infra.holdout import is_held_out
from infra.ledger import Ledger
from infra.storage import open_store
from pipelines.page import runs
from pipelines.page.content import (
    Captioned, CommandRun, Credit, Evaluation, Flow, FlowStep, Lost, Negative, Page, Picture, Reject, Restoration, Scored,
)
from pipelines.page.pictures import embed, embed_compared
from pipelines.recipes.report import ReportConfig

Row = dict[str, Any]
STATES = (("Degraded", "lq"), ("Stage 1", "stage1"), ("Restored", "restored"), ("Original", "original"))


def collect(config: ReportConfig, tracking: str | None) -> Page:
    """Everything that the page shows, from a workspace."""
    work = Workspace(config)
    trainings = runs.trainings(config, tracking)
    evaluations = work.evaluations()
    captions, negatives, restorations = work.captions(), work.negatives(), work.restorations()
    commands = work.commands()
    return Page(
        title=config.title, made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        network=[*work.network(trainings), *runs.parameters(config)], flow=work.flow(), rejects=work.rejects(), captions=captions, negatives=negatives,
        trainings=trainings, evaluations=evaluations, protocol=work.protocol(), restorations=restorations, commands=commands, environment=work.record.get("environment", {}),
        credits=work.credits(), mlflow=tracking,
        missing=[what for what, found in (("captions", captions), ("negatives", negatives), ("training curves", trainings),
                                          ("scores", evaluations), ("restored pictures", restorations), ("commands", commands)) if not found])


class Workspace:
    """The datasets of one workspace. Counts come from commits; pictures from the first shards, as many as the page shows."""

    def __init__(self, config: ReportConfig) -> None:
        self.config = config
        self.root = open_store(config.input)
        self.corpus = Dataset(self.root.child(config.corpus).url)

    @cached_property
    def names(self) -> dict[str, str]:
        """source_id -> the name of the file as it was listed."""
        return {row["source_id"]: row["position"] for row in rows(self.corpus, "inputs", ["source_id", "position"])}

    @cached_property
    def kept(self) -> dict[str, str]:
        """image_id -> source_id of what curation kept (of everything, where it was not curated)."""
        if not self.corpus.has("selections"):
            return {row["image_id"]: row["source_id"] for row in rows(self.corpus, "images", ["image_id", "source_id"])}
        chosen = rows(self.corpus, "selections", ["image_id", "source_id", "accepted"])
        return {row["image_id"]: row["source_id"] for row in chosen if row["accepted"]}

    @cached_property
    def photographs(self) -> dict[str, Row]:
        """source_id -> row of `images` with its bytes, of the first shards."""
        found: dict[str, Row] = {}
        for row in rows(self.corpus, "images"):
            found[row["source_id"]] = row
            if len(found) >= self.config.most:
                break
        return found

    @cached_property
    def ids(self) -> dict[str, str]:
        """image_id or source_id of what is shown -> its file: the reason for a duplicate names the other one so."""
        found = {row["image_id"]: self.names.get(source_id, "") for source_id, row in self.photographs.items() if row["image_id"] in self.kept}
        return {**self.names, **found}

    def name(self, source_id: str) -> str:
        """The name of a photograph, as a person would say it."""
        return title_of(self.names.get(source_id, source_id))

    def flow(self) -> Flow | None:
        """The ledger from what was asked for to what is learnt from."""
        if not (self.corpus.has("inputs") and self.corpus.has("images")):
            return None
        asked, read = self.corpus.snapshot("inputs").rows, self.corpus.snapshot("images").ledger
        steps = [FlowStep(label="asked for", count=asked, lost=losses(read))]
        if self.corpus.has("selections"):
            steps.append(FlowStep(label="read", count=read.accepted, lost=self._not_kept(read.accepted)))
        held_out = sum(is_held_out(image_id) for image_id in self.kept)
        last = steps[-1].count - sum(lost.count for lost in steps[-1].lost)
        steps.append(FlowStep(label="kept", count=last))
        return Flow(steps=steps, ends=[("to learn from", last - held_out), ("held out, to score", held_out)])

    def _not_kept(self, count: int) -> list[Lost]:
        """What curation lost. Pictures that could not be measured are counted by `scores`, and only there if `selections` lacks them."""
        selected = self.corpus.snapshot("selections").ledger
        lost = losses(selected)
        if selected.total < count and self.corpus.has("scores"):
            lost += losses(self.corpus.snapshot("scores").ledger)
        return lost

    def rejects(self) -> list[Reject]:
        """What was not kept, in the order of the chain."""
        found = [self._reject(outcome.row_id, outcome.status, outcome.reason, outcome.detail)
                 for table in ("images", "scores", "selections") if self.corpus.has(table)
                 for ref in self.corpus.snapshot(table).shards.values() for outcome in self.corpus.outcomes(ref)]
        unique = {(reject.name, reject.status == "failed"): reject for reject in reversed(found)}
        return sorted(unique.values(), key=lambda r: (r.status, r.reason, r.name))[: self.config.most]

    def _reject(self, row_id: str, status: str, reason: str, detail: str) -> Reject:
        name = self.names.get(row_id, row_id)
        row = self.photographs.get(row_id) or next((r for r in self.photographs.values() if r["image_id"] == row_id), None)
        value = f"of {self.ids[detail]}" if detail in self.ids else detail.removeprefix(f"{name}: ")
        return Reject(name=name, status=status, reason=reason, value=shorten(value, 140),
                      picture=picture_or_none(row["bytes"], name) if row else None)

    def captions(self) -> list[Captioned]:
        """Kept photographs with their captions."""
        if not self.corpus.has("captions"):
            return []
        found = []
        for row in rows(self.corpus, "captions"):
            source_id = self.kept.get(row["image_id"], "")
            photograph = self.photographs.get(source_id)
            if photograph and len(found) < self.config.most:
                name = self.name(source_id)
                found.append(Captioned(name=name, picture=embed(photograph["bytes"], name), caption=row["caption"], engine=row["engine"],
                                       held_out=is_held_out(row["image_id"])))
        return found

    def negatives(self) -> list[Negative]:
        """Negative samples with their parents, which are not in the same dataset."""
        dataset = self._dataset(self.config.negatives)
        if dataset is None or not dataset.has("images"):
            return []
        parents = {row["image_id"]: row for row in self.photographs.values()}
        return [self._negative(row, parents.get(row["parent_image_id"])) for row in first(rows(dataset, "images"), self.config.most)]

    def _negative(self, row: Row, parent: Row | None) -> Negative:
        name = self.name(parent["source_id"]) if parent else row["parent_image_id"][:12]
        shown = embed(square(parent["bytes"]), f"{name}, the photograph") if parent else None
        settings = f"{name}: strength {row['strength']:g}, {row['steps']} steps"
        return Negative(name=name, parent=shown, picture=embed(row["bytes"], f"{name}, made worse"), prompt=row["prompt"], settings=settings)

    def evaluations(self) -> list[Evaluation]:
        """Scored photographs, of every degradation that was run."""
        return [Evaluation(name=self._name_of_image(row["image_id"]), degradation=row["degradation"], states=scored_states(row, self._name_of_image(row["image_id"])))
                for dataset in self._scored() for row in first(rows(dataset, "evaluations"), self.config.most_strips)]

    def protocol(self) -> dict[str, str]:
        """How the numbers were made, of the first score."""
        for dataset in self._scored():
            for row in rows(dataset, "evaluations", ["protocol"]):
                return {key: str(value) for key, value in json.loads(row["protocol"]).items() if isinstance(value, str | int | float)}
        return {}

    def restorations(self) -> list[Restoration]:
        """Restored pictures beside what they were made from."""
        dataset = self._dataset(self.config.restored)
        if dataset is None or not dataset.has("restorations"):
            return []
        came = {row["image_id"]: row for row in rows(dataset, "images")} if dataset.has("images") else {}
        names = {row["source_id"]: row["position"] for row in rows(dataset, "inputs", ["source_id", "position"])} if dataset.has("inputs") else {}
        return [restoration(row, came.get(row["image_id"], {}), names) for row in first(rows(dataset, "restorations"), self.config.most_strips)]

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the driver of the demo wrote down; empty if the jobs were run by hand."""
        if not self.root.exists(self.config.commands):
            return {"jobs": [], "environment": {}}
        record: dict[str, Any] = json.loads(self.root.read(self.config.commands))
        return record

    def commands(self) -> list[CommandRun]:
        """Every command with what it took."""
        return [CommandRun(job=one["job"], command=one["command"], seconds=one.get("seconds"), peak_gib=one.get("peak_gib"), note=one.get("note", ""))
                for one in self.record["jobs"]]

    def credits(self) -> list[Credit]:
        """Authors and licences, of every photograph that may stand on the page."""
        if not self.corpus.has("inputs"):
            return []
        columns = ["source_id", "position", "attribution", "licence", "licence_url", "source_url"]
        return [Credit(name=row["position"], author=row["attribution"] or "", licence=row["licence"] or "not stated",
                       licence_url=row["licence_url"] or "", source_url=row["source_url"] or "")
                for row in first(rows(self.corpus, "inputs", columns), 4 * self.config.most)]

    def network(self, trainings: list[Any]) -> list[tuple[str, str]]:
        """The numbers at the head of the page."""
        learnt = sum(not is_held_out(image_id) for image_id in self.kept) if self.corpus.has("images") else 0
        return [("photographs learnt from", str(learnt)), ("held out", str(len(self.kept) - learnt))] if learnt else []

    def _name_of_image(self, image_id: str) -> str:
        source_id = self.kept.get(image_id)
        return self.name(source_id) if source_id else image_id[:12]

    def _dataset(self, name: str) -> Dataset | None:
        dataset = Dataset(self.root.child(name).url)
        return dataset if dataset.tables() else None

    def _scored(self) -> Iterator[Dataset]:
        """The datasets of the scores: one for each degradation, side by side."""
        folder = self.root.child(self.config.scored)
        for name in sorted({entry.key.split("/")[0] for entry in folder.list()}):
            dataset = Dataset(folder.child(name).url)
            if dataset.has("evaluations"):
                yield dataset


def rows(dataset: Dataset, table: str, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows of a table's current snapshot, shard by shard."""
    snapshot: Snapshot = dataset.snapshot(table)
    for ref in snapshot.shards.values():
        yield from dataset.read(ref, columns).to_pylist()


def first(found: Iterator[Row], most: int) -> Iterator[Row]:
    """At most so many."""
    for _, row in zip(range(most), found, strict=False):
        yield row


def losses(ledger: Ledger) -> list[Lost]:
    """Rejected and failed rows of a ledger by reason, the most frequent first."""
    found = [Lost(reason=reason, status=status, count=count)
             for status, counts in (("rejected", ledger.rejected), ("failed", ledger.failed)) for reason, count in counts.items()]
    return sorted(found, key=lambda lost: (-lost.count, lost.reason))


def scored_states(row: Row, name: str) -> list[Scored]:
    """The four pictures of an evaluation with their numbers."""
    return [Scored(label=label, picture=embed_compared(row[column], f"{name}, {label.lower()}"),
                   psnr=row.get(f"psnr_{column}"), ssim=row.get(f"ssim_{column}")) for label, column in STATES]


def restoration(row: Row, came: Row, names: dict[str, str]) -> Restoration:
    """One restored picture: as it came (if its bytes are here), stage 1, restored."""
    name = title_of(names.get(came.get("source_id", ""), row["image_id"][:12]))
    columns = [("As it came", came.get("bytes")), ("Stage 1", row["stage1"]), ("Restored", row["bytes"])]
    states = [Scored(label=label, picture=embed_compared(data, f"{name}, {label.lower()}")) for label, data in columns if data]
    return Restoration(name=name, states=states, caption=f"Caption: {row['caption']}" if row["caption"] else "")


def title_of(position: str) -> str:
    """A file's path as words: `a/dandelions_at_sunset.jpg` -> dandelions at sunset."""
    return PurePosixPath(position.rsplit("!", 1)[-1]).stem.replace("_", " ").replace("-", " ")


def shorten(value: str, most: int) -> str:
    """A message that fits a card."""
    return value if len(value) <= most else value[: most - 1].rstrip() + "…"


def square(data: bytes) -> bytes:
    """The centre square, which is what a square sample was made from."""
    from supir_model import images

    rgb_HWC = images.decode(data).rgb_HWC
    return images.encode_png(images.crop(rgb_HWC, min(rgb_HWC.shape[:2])))


def picture_or_none(data: bytes, alt: str) -> Picture | None:
    """A thumbnail, or None for what does not decode."""
    from supir_model.images import ImageError

    try:
        return embed(data, alt)
    except ImageError:
        return None
