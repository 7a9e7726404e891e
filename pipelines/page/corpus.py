"""The corpus as the page shows it: the ledger as a flow, what was not kept, captions, credits."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from infra.dataset import Dataset
from infra.holdout import is_held_out
from infra.ledger import Ledger
from infra.stores import open_store
from pipelines.page.content import Captioned, Credit, Flow, FlowStep, Lost, Picture, Reject
from pipelines.page.pictures import embed
from pipelines.page.reading import Row, first, rows, shorten, title_of
from pipelines.recipes.report import ReportConfig


class Corpus:
    """The dataset that was learnt from. Counts come from commits; pictures from the first shards, as many as the page shows."""

    def __init__(self, config: ReportConfig) -> None:
        self.config = config
        self.corpus = Dataset(open_store(config.input).child(config.corpus).url)

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
        found = {
            row["image_id"]: self.names.get(source_id, "") for source_id, row in self.photographs.items() if row["image_id"] in self.kept
        }
        return {**self.names, **found}

    def name(self, source_id: str) -> str:
        """The name of a photograph, as a person would say it."""
        return title_of(self.names.get(source_id, source_id))

    def flow(self) -> Flow | None:
        """The ledger from what was asked for to what is learnt from."""
        found = flow_of(self.corpus)
        if found is None:
            return None
        held_out = sum(is_held_out(image_id) for image_id in self.kept)
        return replace(found, ends=[("to learn from", found.steps[-1].count - held_out), ("held out, to score", held_out)])

    def rejects(self) -> list[Reject]:
        """What was not kept, in the order of the chain."""
        found = [
            self._reject(outcome.row_id, outcome.status, outcome.reason, outcome.detail)
            for table in ("images", "scores", "selections")
            if self.corpus.has(table)
            for ref in self.corpus.snapshot(table).shards.values()
            for outcome in self.corpus.outcomes(ref)
        ]
        unique = {(reject.name, reject.status == "failed"): reject for reject in reversed(found)}
        return sorted(unique.values(), key=lambda r: (r.status, r.reason, r.name))[: self.config.most]

    def _reject(self, row_id: str, status: str, reason: str, detail: str) -> Reject:
        name = self.names.get(row_id, row_id)
        row = self.photographs.get(row_id) or next((r for r in self.photographs.values() if r["image_id"] == row_id), None)
        value = f"of {self.ids[detail]}" if detail in self.ids else detail.removeprefix(f"{name}: ")
        return Reject(
            name=name, status=status, reason=reason, value=shorten(value, 140), picture=picture_or_none(row["bytes"], name) if row else None
        )

    def captions(self) -> list[Captioned]:
        """Kept photographs with their captions."""
        if not self.corpus.has("captions"):
            return []
        found: list[Captioned] = []
        for row in rows(self.corpus, "captions"):
            source_id = self.kept.get(row["image_id"], "")
            photograph = self.photographs.get(source_id)
            if photograph and len(found) < self.config.most:
                name = self.name(source_id)
                found.append(
                    Captioned(
                        name=name,
                        picture=embed(photograph["bytes"], name),
                        caption=row["caption"],
                        engine=row["engine"],
                        held_out=is_held_out(row["image_id"]),
                    )
                )
        return found

    def credits(self) -> list[Credit]:
        """Authors and licences, of every photograph that may stand on the page."""
        if not self.corpus.has("inputs"):
            return []
        columns = ["source_id", "position", "attribution", "licence", "licence_url", "source_url"]
        return [
            Credit(
                name=row["position"],
                author=row["attribution"] or "",
                licence=row["licence"] or "not stated",
                licence_url=row["licence_url"] or "",
                source_url=row["source_url"] or "",
            )
            for row in first(rows(self.corpus, "inputs", columns), 4 * self.config.most)
        ]

    def network(self) -> list[tuple[str, str]]:
        """The numbers at the head of the page."""
        learnt = sum(not is_held_out(image_id) for image_id in self.kept) if self.corpus.has("images") else 0
        return [("photographs learnt from", str(learnt)), ("held out", str(len(self.kept) - learnt))] if learnt else []

    def name_of_image(self, image_id: str) -> str:
        source_id = self.kept.get(image_id)
        return self.name(source_id) if source_id else image_id[:12]


def flow_of(dataset: Dataset) -> Flow | None:
    """The ledger of a dataset from what was asked for to what was kept; None before something was read."""
    if not (dataset.has("inputs") and dataset.has("images")):
        return None
    asked, read = dataset.snapshot("inputs").rows, dataset.snapshot("images").ledger
    steps = [FlowStep(label="asked for", count=asked, lost=losses(read))]
    if dataset.has("selections"):
        steps.append(FlowStep(label="read", count=read.accepted, lost=_not_kept(dataset, read.accepted)))
    last = steps[-1].count - sum(lost.count for lost in steps[-1].lost)
    return Flow(steps=[*steps, FlowStep(label="kept", count=last)])


def _not_kept(dataset: Dataset, count: int) -> list[Lost]:
    """What curation lost. Pictures that could not be measured are counted by `scores`, and only there if `selections` lacks them."""
    selected = dataset.snapshot("selections").ledger
    lost = losses(selected)
    if selected.total < count and dataset.has("scores"):
        lost += losses(dataset.snapshot("scores").ledger)
    return lost


def losses(ledger: Ledger) -> list[Lost]:
    """Rejected and failed rows of a ledger by reason, the most frequent first."""
    found = [
        Lost(reason=reason, status=status, count=count)
        for status, counts in (("rejected", ledger.rejected), ("failed", ledger.failed))
        for reason, count in counts.items()
    ]
    return sorted(found, key=lambda lost: (-lost.count, lost.reason))


def picture_or_none(data: bytes, alt: str) -> Picture | None:
    """A thumbnail, or None for what does not decode."""
    from supir_model.images import ImageError

    try:
        return embed(data, alt)
    except ImageError:
        return None
