"""What was made of the corpus: negatives, scores, restored pictures, and the record of the commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from infra.dataset import Dataset
from infra.stores import open_store
from pipelines.page.content import CommandRun, Evaluation, Negative, Restoration, Scored
from pipelines.page.corpus import Corpus
from pipelines.page.pictures import embed, embed_compared
from pipelines.page.reading import Row, first, rows, title_of
from pipelines.recipes.report import ReportConfig

STATES = (("Degraded", "lq"), ("Stage 1", "stage1"), ("Restored", "restored"), ("Original", "original"))


class Results:
    """The datasets beside the corpus."""

    def __init__(self, config: ReportConfig, corpus: Corpus) -> None:
        self.config = config
        self.root = open_store(config.input)
        self.corpus = corpus

    def negatives(self) -> list[Negative]:
        """Negative samples with their parents, which are not in the same dataset."""
        dataset = self._dataset(self.config.negatives)
        if dataset is None or not dataset.has("images"):
            return []
        parents = {row["image_id"]: row for row in self.corpus.photographs.values()}
        return [self._negative(row, parents.get(row["parent_image_id"])) for row in first(rows(dataset, "images"), self.config.most)]

    def _negative(self, row: Row, parent: Row | None) -> Negative:
        name = self.corpus.name(parent["source_id"]) if parent else row["parent_image_id"][:12]
        shown = embed(square(parent["bytes"]), f"{name}, the photograph") if parent else None
        settings = f"{name}: strength {row['strength']:g}, {row['steps']} steps"
        return Negative(
            name=name, parent=shown, picture=embed(row["bytes"], f"{name}, made worse"), prompt=row["prompt"], settings=settings
        )

    def evaluations(self) -> list[Evaluation]:
        """Scored photographs, of every degradation that was run."""
        return [
            Evaluation(
                name=self.corpus.name_of_image(row["image_id"]),
                degradation=row["degradation"],
                states=scored_states(row, self.corpus.name_of_image(row["image_id"])),
            )
            for dataset in self._scored()
            for row in first(rows(dataset, "evaluations"), self.config.most_strips)
        ]

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
        names = (
            {row["source_id"]: row["position"] for row in rows(dataset, "inputs", ["source_id", "position"])}
            if dataset.has("inputs")
            else {}
        )
        return [
            restoration(row, came.get(row["image_id"], {}), names) for row in first(rows(dataset, "restorations"), self.config.most_strips)
        ]

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the driver of the demo wrote down; empty if the jobs were run by hand."""
        if not self.root.exists(self.config.commands):
            return {"jobs": [], "environment": {}}
        record: dict[str, Any] = json.loads(self.root.read(self.config.commands))
        return record

    def commands(self) -> list[CommandRun]:
        """Every command with what it took."""
        return [
            CommandRun(
                job=one["job"], command=one["command"], seconds=one.get("seconds"), peak_gib=one.get("peak_gib"), note=one.get("note", "")
            )
            for one in self.record["jobs"]
        ]

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


def scored_states(row: Row, name: str) -> list[Scored]:
    """The four pictures of an evaluation with their numbers."""
    return [
        Scored(
            label=label,
            picture=embed_compared(row[column], f"{name}, {label.lower()}"),
            psnr=row.get(f"psnr_{column}"),
            ssim=row.get(f"ssim_{column}"),
        )
        for label, column in STATES
    ]


def restoration(row: Row, came: Row, names: dict[str, str]) -> Restoration:
    """One restored picture: as it came (if its bytes are here), stage 1, restored."""
    name = title_of(names.get(came.get("source_id", ""), row["image_id"][:12]))
    columns = [("As it came", came.get("bytes")), ("Stage 1", row["stage1"]), ("Restored", row["bytes"])]
    states = [Scored(label=label, picture=embed_compared(data, f"{name}, {label.lower()}")) for label, data in columns if data]
    return Restoration(name=name, states=states, caption=f"Caption: {row['caption']}" if row["caption"] else "")


def square(data: bytes) -> bytes:
    """The centre square, which is what a square sample was made from."""
    from supir_model import images

    rgb_HWC = images.decode(data).rgb_HWC
    return images.encode_png(images.crop(rgb_HWC, min(rgb_HWC.shape[:2])))
