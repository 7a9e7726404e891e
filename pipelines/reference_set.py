"""How a set of good photographs measures, and the bounds that a rule takes from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.dataset import Dataset
from infra.stores import open_store
from pipelines.corpus_facts import SIGNIFICANT_DIGITS
from pipelines.stages.image_models import MODEL_MEASURES, ImageModels
from pipelines.stages.measures import MEASURES
from pipelines.stages.scores import Scores
from pipelines.stages.selection import MIN, Limit, SelectionRule, Threshold

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
BATCH = 32  # choice: files in memory at a time
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Measure -> its values, NaN where there is none; and what could not be read."""

    columns: Columns
    rows: int
    failed: dict[str, str]  # position -> why


def measured(address: str, *, max_pixels: int, threads: int, models: ImageModels | None = None) -> Reference:
    """The scores of a dataset, or of the photographs under an address, measured here. Raises ValueError where there is neither."""
    dataset = Dataset(address)
    if dataset.has("scores"):
        return _reference([dataset.read(ref) for ref in dataset.snapshot("scores").shards.values()], {})
    tables: list[pa.Table] = []
    failed: dict[str, str] = {}
    stage = Scores(max_pixels=max_pixels, threads=threads, models=models or ImageModels())
    stage.setup()
    for images in _files(address):
        result = stage.process({"images": images}, {})
        tables.append(result.table)
        failed |= {outcome.row_id: outcome.reason for outcome in result.outcomes}
    if not sum(table.num_rows for table in tables):
        raise ValueError(f"{address} holds neither a dataset with scores nor a photograph ({', '.join(SUFFIXES)}): pass a reference set")
    return _reference(tables, failed)


def _files(address: str) -> Iterator[pa.Table]:
    store = open_store(address)
    keys = sorted(entry.key for entry in store.list() if entry.key.lower().endswith(SUFFIXES))
    for some in (keys[low:low + BATCH] for low in range(0, len(keys), BATCH)):
        yield pa.table({"image_id": some, "source_id": some, "bytes": pa.array([store.read(key) for key in some], pa.binary())})


def _reference(tables: list[pa.Table], failed: dict[str, str]) -> Reference:
    whole = pa.concat_tables(tables)
    names = [name for name in ("short_side", *MEASURES, *MODEL_MEASURES) if name in whole.column_names]
    columns = {name: np.asarray(whole[name].cast(pa.float64()).to_numpy(zero_copy_only=False)) for name in names}
    return Reference(columns=columns, rows=whole.num_rows, failed=failed)


def bounds(one: Limit, values: NDArray[Any], worst: float) -> Threshold | None:
    """The limit's threshold with bounds from the reference: the loose one rejects `worst` percent of it, the tight one what the
    limit's own percentile rejects. None without values. A limit that stands (both bounds equal) keeps standing, at the loose one."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    stands = one.threshold.at_least == one.threshold.at_most
    wanted = one.threshold.percentile
    loose_at = worst if one.side == MIN else 100 - worst
    loose = _percentile(values, loose_at)
    tight = loose if stands else _percentile(values, max(wanted, loose_at) if one.side == MIN else min(wanted, loose_at))
    return Threshold(percentile=wanted, at_least=min(loose, tight), at_most=max(loose, tight))


def _percentile(values: NDArray[Any], at: float) -> float:
    return float(f"{np.percentile(values, at):.{SIGNIFICANT_DIGITS}g}")


def report(reference: Reference, rule: SelectionRule, worst: float) -> dict[str, Any]:
    """Percentiles of every measure, and the thresholds, as JSON holds them."""
    columns = {name: values[~np.isnan(values)] for name, values in reference.columns.items()}
    found = {one.measure: bounds(one, reference.columns[one.measure], worst) for one in rule.limits() if one.measure in columns}
    return {"rows": reference.rows, "failed": reference.failed,
            "percentiles": {name: [_percentile(values, at) for at in PERCENTILES] for name, values in columns.items() if len(values)},
            "rule": {name: asdict(threshold) for name, threshold in found.items() if threshold},
            "not_measured": {one.measure: one.model for one in rule.limits() if not found.get(one.measure)}}


def text(found: dict[str, Any]) -> str:
    """For a person: a table, and the flags of `pipelines/curate.py`."""
    lines = [f"{found['rows']} photographs; percentiles", f"{'':16}" + "".join(f"{at:>9}" for at in PERCENTILES)]
    lines += [f"{name:16}" + "".join(f"{value:9.4g}" for value in values) for name, values in found["percentiles"].items()]
    lines += [f"not read: {name} ({why})" for name, why in islice(found["failed"].items(), 10)]
    lines += [f"not measured, so without bounds: {name}" + (f" (--set models.{model}=…)" if model else "")
              for name, model in found["not_measured"].items()]
    lines += ["", "bounds for pipelines/curate.py:"]
    return "\n".join(lines + [f"  --set 'rule.{name}={json.dumps(threshold)}'" for name, threshold in found["rule"].items()])
