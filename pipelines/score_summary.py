"""Means over scored photographs: as a table for the eye, and as runs that MLflow compares by the same metric names."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.dataset import Dataset, Snapshot
from infra.tracking import open_tracker
from pipelines.runtime.stage import result_config
from pipelines.stages.restoration_scores import MEASURED, RestorationScores

NAMES = {"lq": "degraded", "stage1": "stage 1", "restored": "restored"}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Means of one degradation. `means` maps `psnr_restored`, … to a value; empty where nothing was scored."""

    degradation: str
    photographs: int
    means: dict[str, float]
    is_new: bool
    config: dict[str, Any]
    protocol: str
    table: pa.Table


def summarise(output: Dataset, snapshot: Snapshot, stage: RestorationScores, is_new: bool) -> Summary:
    """Read the evaluations of one degradation, numbers alone."""
    numbers = [f"{measure}_{what}" for what in MEASURED for measure in ("psnr", "ssim")]
    parts = [output.read(ref, ["image_id", *numbers]) for ref in snapshot.shards.values()]
    table = pa.concat_tables(parts)
    means = {name: mean(table.column(name).to_pylist()) for name in numbers} if table.num_rows else {}
    return Summary(
        degradation=stage.degradation,
        photographs=table.num_rows,
        means=means,
        is_new=is_new,
        config=result_config(stage),
        protocol=stage.protocol,
        table=table,
    )


def mean(values: list[float]) -> float:
    """The mean of what is finite: the PSNR of equal pictures is not."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.inf


def show(summaries: list[Summary]) -> None:
    """Print the table of means."""
    print(f"\n{'degradation':<26}{'photographs':>12}" + "".join(f"{NAMES[what] + ' dB':>15}{'SSIM':>8}" for what in MEASURED))
    for one in summaries:
        cells = (
            f"{one.means[f'psnr_{what}']:>15.2f}{one.means[f'ssim_{what}']:>8.3f}" if one.means else f"{'-':>15}{'-':>8}"
            for what in MEASURED
        )
        print(f"{one.degradation:<26}{one.photographs:>12}" + "".join(cells), flush=True)
    if not all(one.photographs for one in summaries):
        print("nothing was scored: no accepted image is held out; --set holdout_every=0 scores every image of the dataset")


def track(summaries: list[Summary], tracking: str | None) -> None:
    """One run a degradation, for scores that this command made anew."""
    for one in summaries:
        if not (one.is_new and one.means):
            continue
        tracker = open_tracker(tracking, experiment="scores", run_name=one.degradation)
        tracker.config(one.config)
        tracker.tags({"degradation": one.degradation})
        tracker.metrics({**one.means, "photographs": one.photographs}, step=0)
        tracker.artifact("protocol.json", one.protocol.encode())
        sink = io.BytesIO()
        pq.write_table(one.table, sink)
        tracker.artifact("scores.parquet", sink.getvalue())
        tracker.close()
