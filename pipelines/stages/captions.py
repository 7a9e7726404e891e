"""The caption stage: every accepted image gets a checked caption, or a reason why it has none."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from infra.ledger import Outcome
from pipelines.runtime.stage import Result, StageUnusable, TravelsAsFields
from pipelines.stages.agreement import Agreement, AgreementSettings
from pipelines.stages.caption_checks import CheckSettings, Fault, find_fault
from pipelines.stages.captioner import Asked, Captioned, Captioner, Refused
from pipelines.stages.endpoint import EndpointSettings
from pipelines.stages.facts import FactsSettings
from pipelines.stages.llava import LlavaSettings
from pipelines.stages.pictures import Waiting, decoded_rows
from pipelines.stages.views import Seen, SeenSettings

SCHEMA = pa.schema([
    ("image_id", pa.string()), ("caption", pa.string()), ("engine", pa.string()), ("model", pa.string()), ("revision", pa.string()),
    ("prompt", pa.string()), ("decoding", pa.string()), ("finish_reason", pa.string()), ("verdict", pa.string()),
    ("clip_tokens", pa.int32()), ("seen", pa.string()), ("agreement", pa.float32())])
PROVE_EVERY_ROWS = 5000  # choice: a canary costs four captions, so less than a thousandth


@dataclass(frozen=True, kw_only=True)
class CaptionStage(TravelsAsFields):
    """Captions the accepted rows of `images`. Without a `selections` table among its inputs it captions every row.

    `weights` is the hash of the captioner's folder of weights and `clip_vocabulary` that of the tokenizer's folder (None: the
    column clip_tokens is empty), so that others make shards stale wherever they lie. A worker proves itself again after every
    `prove_every_rows` captions.
    """

    name: ClassVar[str] = "caption"
    version: ClassVar[int] = 4
    table: ClassVar[str] = "captions"
    row_id: ClassVar[str] = "source_id"  # the same bytes may stand twice among the images, once accepted and once as a duplicate
    keeps_rejected: ClassVar[bool] = False

    captioner: FactsSettings | LlavaSettings | EndpointSettings
    checks: CheckSettings
    seen: SeenSettings = field(default_factory=SeenSettings)
    agreement: AgreementSettings = field(default_factory=AgreementSettings)
    batch_size: int = field(default=8, metadata={"result": False})
    clip_tokenizer: str | None = field(default=None, metadata={"result": False})
    weights: str = ""
    clip_vocabulary: str = ""
    prove_every_rows: int = field(default=PROVE_EVERY_ROWS, metadata={"result": False})

    @cached_property
    def engine(self) -> Captioner:
        """The captioner, made where it is used: it does not travel."""
        return self.captioner.build(self.weights, self.batch_size)

    @cached_property
    def view(self) -> Seen:
        """What the captioner is shown of a picture."""
        return self.seen.build()

    @cached_property
    def judge(self) -> Agreement | None:
        """Measures whether captions fit their pictures, if a CLIP was given."""
        return self.agreement.build()

    @cached_property
    def count_tokens(self) -> ClipTokens | None:
        """Counts CLIP's tokens, if a tokenizer was given."""
        return ClipTokens(self.clip_tokenizer, self.clip_vocabulary) if self.clip_tokenizer else None

    @cached_property
    def _proved(self) -> list[int]:
        return [0]  # captions since the last proof

    def setup(self) -> None:
        """Load the captioner and let it prove itself."""
        self.engine.load()
        self.view.load()
        if self.judge:
            self.judge.load()
        assert self.count_tokens is None or self.count_tokens("a photograph") > 0, "the tokenizer counts nothing"

    def process(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> Result:
        """Caption a slice of a shard of `images`; a caption depends on its own image alone."""
        images = rows["images"]
        chosen, outcomes = select(images, rows.get("selections"), self.row_id)
        if chosen:
            self._prove_now_and_then(len(chosen))
        slice_ = _Slice(self, images, chosen)
        said = dict(slice_.run())
        captions = [self._row(slice_.ids[row], answer, attempt, slice_.cosines.get(row)) for row, (answer, attempt) in sorted(said.items())]
        outcomes += [slice_.outcomes[row] for row in sorted(slice_.outcomes)]
        counted = {**slice_.counted(), "near_captions": float(near(answer.text for answer, _ in said.values()))} if chosen else {}
        return Result(pa.Table.from_pylist(captions, schema=SCHEMA), outcomes, counted)

    def work(self, rows: dict[str, pa.Table], params: dict[str, Any]) -> list[int]:
        """Positions of the rows that are captioned."""
        return select(rows["images"], rows.get("selections"), self.row_id)[0]

    def amount(self, params: dict[str, Any]) -> int | None:
        """The selections tell, not the parameters."""
        return None

    def _prove_now_and_then(self, rows: int) -> None:
        if self._proved[0] >= self.prove_every_rows:
            try:
                self.engine.prove()
            except ValueError as error:
                raise StageUnusable(f"after {self._proved[0]} captions: {error}") from error
            self._proved[0] = 0
        self._proved[0] += rows

    def _row(self, image_id: str, answer: Captioned, attempt: int, cosine: float | None) -> dict[str, Any]:
        who = self.engine.identity
        return {"image_id": image_id, "caption": answer.text, "engine": who.engine, "model": who.model, "revision": who.revision,
                "prompt": answer.prompt, "decoding": answer.decoding, "finish_reason": answer.finish_reason,
                "verdict": f"ok_after_{attempt}" if attempt else "ok",
                "clip_tokens": self.count_tokens(answer.text) if self.count_tokens else None, "seen": self.view.describe(image_id),
                "agreement": cosine}


def near(texts: Iterable[str]) -> int:
    """How many captions are near an earlier one of the same slice."""
    from pipelines.stages.near_texts import heads

    found = heads(texts).tolist()
    return sum(head != place for place, head in enumerate(found))


class _Slice:
    """The captions of one slice on their way: pictures that are decoded next, faults that are asked about again."""

    def __init__(self, stage: CaptionStage, images: pa.Table, rows: list[int]) -> None:
        self.stage, self.images, self.rows = stage, images, rows
        self.ids: list[str] = images.column("image_id").to_pylist()
        self.sources: list[str] = images.column(stage.row_id).to_pylist()
        self.outcomes: dict[int, Outcome] = {}
        self.again: deque[Asked] = deque()
        self.waiting = Waiting()
        self.tokens = 0
        self.start, self.check_s = time.monotonic(), 0.0
        self.looks: dict[int, Any] = {}  # pictures under way, as CLIP sees them
        self.cosines: dict[int, float] = {}

    def run(self) -> Iterator[tuple[int, tuple[Captioned, int]]]:
        """(row, (caption, attempts before it)) of every row that got a caption; the others are among `outcomes`."""
        engine = self.stage.engine
        decoded = decoded_rows(self.images, self.rows, self.stage.batch_size, self.stage.row_id, self._prepare, self.waiting)
        while True:
            for asked, answer in engine.describe_all(self._asked(decoded)):
                if isinstance(answer, Refused):
                    self.looks.pop(asked.place, None)
                    self.outcomes[asked.place] = Outcome(self.sources[asked.place], "failed", answer.reason, answer.detail)
                    continue
                self.tokens += answer.tokens
                fault = self._fault(asked.place, answer)
                if fault is None:
                    self.looks.pop(asked.place, None)
                    yield asked.place, (answer, asked.attempt)
                else:
                    self._again_or_reject(asked, fault)
            if not self.again:
                return

    def _prepare(self, rgb_HWC: Any, row: int) -> tuple[Any, Any]:
        """(the picture for the captioner, the picture for CLIP). Raises ImageError for one that a processor refuses."""
        from supir_model.images import ImageError

        seen_HWC = self.stage.view.show(rgb_HWC, self.ids[row])
        try:
            return self.stage.engine.prepare(seen_HWC), self.stage.judge.look(seen_HWC) if self.stage.judge else None
        except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
            height, width = seen_HWC.shape[:2]
            raise ImageError("processor_refused", f"{width} x {height}: {type(error).__name__}: {error}"[:300]) from error

    def counted(self) -> dict[str, float]:
        """Amounts for the commit; seconds in which the model waited for pictures, answers were checked, and the rest: the model's own."""
        model_s = time.monotonic() - self.start - self.waiting.seconds - self.check_s
        return {"images": float(len(self.rows)), "tokens": float(self.tokens), "wait_s": self.waiting.seconds, "check_s": self.check_s,
                "model_s": model_s}

    def _fault(self, row: int, answer: Captioned) -> Fault | None:
        start = time.monotonic()
        fault = find_fault(answer.text, answer.finish_reason, self.stage.checks) or self._disagreement(row, answer.text)
        self.check_s += time.monotonic() - start
        return fault

    def _disagreement(self, row: int, text: str) -> Fault | None:
        judge = self.stage.judge
        if judge is None:
            return None
        self.cosines[row] = judge.measure(self.looks[row], text)
        return judge.fault(self.cosines[row], text)

    def _asked(self, decoded: Iterator[tuple[int, Any]]) -> Iterator[Asked]:
        """Faults that are asked about again go first: they fill the places beside what is new."""
        while True:
            if self.again:
                yield self.again.popleft()
                continue
            row, made = next(decoded, (-1, None))
            if made is None:
                return
            if isinstance(made, Outcome):
                self.outcomes[row] = made
            else:
                picture, look = made
                if look is not None:
                    self.looks[row] = look
                yield self._ask(row, picture, 0)

    def _ask(self, row: int, picture_HWC: Any, attempt: int) -> Asked:
        return Asked(place=row, picture_HWC=picture_HWC, seed=seed_of(self.ids[row], f"caption {attempt}"), attempt=attempt)

    def _again_or_reject(self, asked: Asked, fault: Fault) -> None:
        if asked.attempt < self.stage.checks.reasks:
            self.again.append(self._ask(asked.place, asked.picture_HWC, asked.attempt + 1))
        else:
            self.looks.pop(asked.place, None)
            self.outcomes[asked.place] = Outcome(self.sources[asked.place], "rejected", fault.reason, fault.detail)


class ClipTokens:
    """Counts the tokens of a text as CLIP reads it, begin and end included. CLIP reads 77; longer captions are kept whole."""

    def __init__(self, folder: str, identity: str = "") -> None:
        from transformers import CLIPTokenizer

        from pipelines.stages.weights import local_folder

        self._tokenizer = CLIPTokenizer.from_pretrained(local_folder(folder, identity), local_files_only=True)

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
