"""The caption stage: every accepted image gets a checked caption, or a reason why it has none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from infra.ledger import Outcome
from pipelines.runtime.stage import Result, TravelsAsFields
from pipelines.stages.caption_checks import CheckSettings, Fault, find_fault
from pipelines.stages.captioner import Captioned, Captioner
from pipelines.stages.facts import FactsSettings
from pipelines.stages.llava import LlavaSettings
from pipelines.stages.pictures import Batch, decoded_batches

SCHEMA = pa.schema([
    ("image_id", pa.string()), ("caption", pa.string()), ("engine", pa.string()), ("model", pa.string()), ("revision", pa.string()),
    ("prompt", pa.string()), ("decoding", pa.string()), ("finish_reason", pa.string()), ("verdict", pa.string()),
    ("clip_tokens", pa.int32())])


@dataclass(frozen=True, kw_only=True)
class CaptionStage(TravelsAsFields):
    """Captions the accepted rows of `images`. Without a `selections` table among its inputs it captions every row.

    `weights` is the hash of the captioner's folder of weights and `clip_vocabulary` that of the tokenizer's folder (None: the
    column clip_tokens is empty), so that others make shards stale wherever they lie.
    """

    name: ClassVar[str] = "caption"
    version: ClassVar[int] = 1
    table: ClassVar[str] = "captions"
    row_id: ClassVar[str] = "source_id"  # the same bytes may stand twice among the images, once accepted and once as a duplicate
    keeps_rejected: ClassVar[bool] = False

    captioner: FactsSettings | LlavaSettings
    checks: CheckSettings
    batch_size: int = field(default=8, metadata={"result": False})
    clip_tokenizer: str | None = field(default=None, metadata={"result": False})
    weights: str = ""
    clip_vocabulary: str = ""

    @cached_property
    def engine(self) -> Captioner:
        """The captioner, made where it is used: it does not travel."""
        return self.captioner.build(self.weights)

    @cached_property
    def count_tokens(self) -> ClipTokens | None:
        """Counts CLIP's tokens, if a tokenizer was given."""
        return ClipTokens(self.clip_tokenizer) if self.clip_tokenizer else None

    def setup(self) -> None:
        """Load the captioner and let it prove itself."""
        self.engine.load()
        assert self.count_tokens is None or self.count_tokens("a photograph") > 0, "the tokenizer counts nothing"

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """Caption a slice of a shard of `images`; a caption depends on its own image alone."""
        images = rows["images"]
        chosen, outcomes = select(images, rows.get("selections"), self.row_id)
        captions: list[dict[str, Any]] = []
        for batch in decoded_batches(images, chosen, self.batch_size, self.row_id, self.engine.prepare):
            outcomes += batch.failed
            if batch.rows:
                self._caption(images, batch, captions, outcomes)
        return Result(pa.Table.from_pylist(captions, schema=SCHEMA), outcomes)

    def _caption(self, images: pa.Table, batch: Batch, captions: list[dict[str, Any]], outcomes: list[Outcome]) -> None:
        ids = [images.column("image_id")[row].as_py() for row in batch.rows]
        said = self._ask(ids, batch.pictures)
        for row, image_id, (answer, fault, asked) in zip(batch.rows, ids, said, strict=True):
            if fault:
                outcomes.append(Outcome(images.column(self.row_id)[row].as_py(), "rejected", fault.reason, fault.detail))
            else:
                captions.append(self._row(image_id, answer, asked))

    def _ask(self, ids: list[str], pictures: list[Any]) -> list[tuple[Captioned, Fault | None, int]]:
        """Caption pictures; those whose caption has a fault are asked for again, a bounded number of times."""
        said: dict[int, tuple[Captioned, Fault | None, int]] = {}
        open_places = list(range(len(ids)))
        for attempt in range(self.checks.reasks + 1):
            seeds = [seed_of(ids[place], f"caption {attempt}") for place in open_places]
            answers = self.engine.describe([pictures[place] for place in open_places], seeds, attempt=attempt)
            for place, answer in zip(open_places, answers, strict=True):
                said[place] = (answer, find_fault(answer.text, answer.finish_reason, self.checks), attempt)
            open_places = [place for place in open_places if said[place][1]]
            if not open_places:
                break
        return [said[place] for place in range(len(ids))]

    def _row(self, image_id: str, answer: Captioned, asked: int) -> dict[str, Any]:
        who = self.engine.identity
        return {"image_id": image_id, "caption": answer.text, "engine": who.engine, "model": who.model, "revision": who.revision,
                "prompt": answer.prompt, "decoding": answer.decoding, "finish_reason": answer.finish_reason,
                "verdict": f"ok_after_{asked}" if asked else "ok",
                "clip_tokens": self.count_tokens(answer.text) if self.count_tokens else None}


class ClipTokens:
    """Counts the tokens of a text as CLIP reads it, begin and end included. CLIP reads 77; longer captions are kept whole."""

    def __init__(self, folder: str) -> None:
        from transformers import CLIPTokenizer

        from pipelines.stages.weights import local_folder

        self._tokenizer = CLIPTokenizer.from_pretrained(local_folder(folder), local_files_only=True)

    def __call__(self, text: str) -> int:
        return len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])


def select(images: pa.Table, selections: pa.Table | None, row_id: str) -> tuple[list[int], list[Outcome]]:
    """(positions of the accepted rows, an outcome `not_selected` for each of the others)."""
    if selections is None:
        return list(range(images.num_rows)), []
    columns = [selections.column(name).to_pylist() for name in ("image_id", "source_id", "accepted")]
    accepted = {(image_id, source_id) for image_id, source_id, good in zip(*columns, strict=True) if good}
    pairs = zip(images.column("image_id").to_pylist(), images.column("source_id").to_pylist(), strict=True)
    keep = [pair in accepted for pair in pairs]
    left_out = [Outcome(images.column(row_id)[row].as_py(), "rejected", "not_selected") for row, good in enumerate(keep) if not good]
    return [row for row, good in enumerate(keep) if good], left_out


def seed_of(image_id: str, purpose: str) -> int:
    """63 random bits that belong to one image and one purpose: whatever is drawn for it can be drawn again."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{image_id}".encode()).digest()[:8], "big") >> 1
