"""ffhq-dataset-v2.json, the record that lies beside the FFHQ photographs: file, author and licence of each of the 70,000."""

from __future__ import annotations

import json
from typing import Any

from pipelines.provenance import Provenance, provenance_of


def parse_json(data: bytes, name: str) -> dict[str, Provenance]:
    """File of the `in-the-wild` photograph -> provenance, with its folder and without. Raises ValueError for another layout."""
    try:
        records: Any = json.loads(data)
        told: dict[str, Provenance] = {}
        for record in records.values():
            meta = record["metadata"]
            provenance = provenance_of({"licence": meta["license"], "licence_url": meta["license_url"], "attribution": meta["author"],
                                        "source_url": meta["photo_url"]})
            path = str(record["in_the_wild"]["file_path"])
            told |= {path: provenance, path.partition("/")[2]: provenance}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} is not laid out as ffhq-dataset-v2.json ({type(error).__name__}: {error}): give the CSV of a sidecar "
                         "instead, with a column `file`") from error
    return told
