"""A workspace made by hand through the data contract: what the page's tests read, without running a job."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageFilter

from infra.dataset import Dataset, hash_config
from infra.ledger import Ledger, Outcome
from infra.stores import open_store
from infra.tracking import open_tracker
from tests.helpers import IMAGES, ROOT, image_row, photographs, shrunk

HOSTILE = '<script>alert("caption")</script> & "quotes" </style>'
SCORED_PX = 192


def make_workspace(folder: Path, count: int = 18, tracking: str | None = None, repeat: int = 1) -> str:
    """Datasets, runs and the record of commands in a folder; returns its address."""
    photos = photographs(count)
    rows = [image_row(shrunk(path, 480), path.name) for path in photos]
    corpus(Dataset(str(folder / "corpus")), photos, rows)
    negatives(Dataset(str(folder / "negatives")), rows[:4])
    scored(Dataset(str(folder / "scored" / "real_esrgan")), rows[:3])
    restored(Dataset(str(folder / "restored")), rows[-2:])
    for stage in ("encoder", "adaptor"):
        training(folder / stage, tracking, stage, repeat)
    jobs = [
        {
            "job": "ingest",
            "command": "python pipelines/ingest.py --input examples/photos --output demo-output/corpus",
            "seconds": 6.2,
            "peak_gib": 1.1,
        },
        {
            "job": "train_adaptor",
            "command": "python training/train_adaptor.py --input demo-output/corpus --output demo-output/adaptor",
            "seconds": 141.0,
            "peak_gib": 3.4,
        },
    ]
    (folder / "demo.json").write_text(json.dumps({"jobs": jobs}))
    return str(folder)


def corpus(dataset: Dataset, photos: list[Path], rows: list[dict[str, object]]) -> None:
    """inputs, images, selections and captions; the first photograph is rejected, one input could not be read, one caption is hostile."""
    told = {row["file"]: row for row in csv.DictReader((ROOT / "examples" / "photos.csv").open())}
    inputs = [
        {
            "source_id": row["source_id"],
            "position": path.name,
            "address": "examples",
            **{key: told.get(path.name, {}).get(key, "") for key in ("licence", "licence_url", "attribution", "source_url")},
        }
        for path, row in zip(photos, rows, strict=True)
    ]
    broken = [{**inputs[0], "source_id": f"broken{n}", "position": f"bad_{n}.jpg", "source_url": "javascript:alert(1)"} for n in range(3)]
    commit(dataset, "inputs", pa.Table.from_pylist(inputs + broken))
    outcomes = [
        Outcome("broken0", "failed", "truncated", "bad_0.jpg: ends early <b>"),
        Outcome("broken1", "failed", "empty", "no bytes"),
        Outcome("broken2", "failed", "empty", "no bytes"),
    ]
    commit(dataset, "images", pa.Table.from_pylist(rows, schema=IMAGES), outcomes)
    reasons = ["too_small", "blurred", "near_duplicate", "duplicate"]
    lost = [Outcome(str(row["source_id"]), "rejected", reasons[n], f"value {n * 3.14:.3g}") for n, row in enumerate(rows[:4])]
    chosen = [
        {"image_id": r["image_id"], "source_id": r["source_id"], "accepted": n >= 4, "reason": "", "value": ""} for n, r in enumerate(rows)
    ]
    commit(dataset, "selections", pa.Table.from_pylist(chosen), lost, accepted=len(rows) - len(lost))
    captions = [
        {
            "image_id": r["image_id"],
            "caption": HOSTILE
            if n == 0
            else "A photograph in landscape format, dark with high contrast, mostly blue "
            "with some brown. It shows clear texture and is sharp.",
            "engine": "facts",
        }
        for n, r in enumerate(rows[4:])
    ]
    commit(dataset, "captions", pa.Table.from_pylist(captions))


def negatives(dataset: Dataset, parents: list[dict[str, object]]) -> None:
    """Blurred squares under a prompt of faults."""
    found = [
        {
            "image_id": f"n{n}",
            "parent_image_id": p["image_id"],
            "bytes": changed(p, 128, 2.5),
            "strength": 0.5,
            "steps": 20,
            "seed": n,
            "prompt": "lowres, blurry <i>",
        }
        for n, p in enumerate(parents)
    ]
    commit(dataset, "images", pa.Table.from_pylist(found))


def scored(dataset: Dataset, rows: list[dict[str, object]]) -> None:
    """Evaluations with invented numbers."""
    found = [
        {
            "image_id": r["image_id"],
            "degradation": "real_esrgan",
            "seed": 0,
            "psnr_lq": 22.1 + n,
            "ssim_lq": 0.61,
            "psnr_stage1": 22.9 + n,
            "ssim_stage1": 0.64,
            "psnr_restored": 23.4 + n,
            "ssim_restored": 0.66,
            "lq": changed(r, SCORED_PX, 3),
            "stage1": changed(r, SCORED_PX, 2),
            "restored": changed(r, SCORED_PX, 1),
            "original": changed(r, SCORED_PX, 0),
            "protocol": json.dumps({"colour": "RGB", "border_px": 0, "size_px": SCORED_PX}),
        }
        for n, r in enumerate(rows)
    ]
    commit(dataset, "evaluations", pa.Table.from_pylist(found))


def restored(dataset: Dataset, rows: list[dict[str, object]]) -> None:
    """Two pictures of a folder."""
    commit(dataset, "images", pa.Table.from_pylist(rows, schema=IMAGES))
    found = [
        {"image_id": r["image_id"], "bytes": changed(r, SCORED_PX, 1), "stage1": changed(r, SCORED_PX, 2), "caption": HOSTILE, "prompt": ""}
        for r in rows
    ]
    commit(dataset, "restorations", pa.Table.from_pylist(found))


def training(folder: Path, tracking: str | None, stage: str, repeat: int) -> None:
    """The record of a run and its metrics."""
    tracker = open_tracker(tracking, experiment=stage, run_name=stage)
    for step in range(1, 60 * repeat + 1):
        tracker.metrics({"loss": 1 / step**0.5 + 0.05 * ((step * 7919) % 13) / 13, "grad_norm": 1 + ((step * 31) % 7) / 7}, step)
    tracker.close()
    config = {
        "steps": 60,
        "batch": {"global_batch": 8, "crop_px": 128, "degradation": "real_esrgan"},
        "engine": {"kind": "zero", "zero_stage": 2},
        "launch": {"workers": 2},
        "optimizer": {"lr": 1e-4},
    }
    store = open_store(str(folder))
    store.put("run.json", json.dumps({"config": config}).encode())
    store.put("finished.json", json.dumps({"steps": 60, "tracker_run_id": tracker.run_id}).encode())


def changed(row: dict[str, object], side_px: int, blur_px: float) -> bytes:
    """The centre square as a PNG, blurred."""
    data = row["bytes"]
    assert isinstance(data, bytes), "a row of images has bytes"
    with Image.open(io.BytesIO(data)) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = (
            image.convert("RGB")
            .crop((left, top, left + side, top + side))
            .resize((side_px, side_px))
            .filter(ImageFilter.GaussianBlur(blur_px))
        )
    sink = io.BytesIO()
    square.save(sink, "PNG")
    return sink.getvalue()


def commit(dataset: Dataset, table: str, data: pa.Table, outcomes: list[Outcome] | None = None, accepted: int | None = None) -> None:
    """One shard, committed and published."""
    lost = outcomes or []
    kept = data.num_rows if accepted is None else accepted
    ref = dataset.commit(
        table=table,
        version=hash_config(table),
        shard="00000",
        key=hash_config([table]),
        data=data,
        outcomes=lost,
        ledger=Ledger.of(kept + len(lost), kept, lost),
        inputs={},
        stage_version=1,
    )
    dataset.publish(table, hash_config(table), [ref], {})
