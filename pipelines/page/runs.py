"""Training runs as the page shows them: curves from the tracker, facts from the record that a run keeps in its folder."""

from __future__ import annotations

import json
import struct
from typing import Any

from infra.storage import Store
from infra.stores import open_store
from infra.tracking import read_metrics
from pipelines.page.content import Curve, Training
from pipelines.recipes.report import ReportConfig

STAGES = (
    (
        "encoder",
        "Stage 1: the degradation-robust encoder",
        "It learns to give the latent of a degraded photograph the value that the original's has, so that what is decoded is cleaner.",
    ),
    (
        "adaptor",
        "Stage 2: adaptor and connectors",
        "The prior is frozen. The adaptor reads the degraded latent and learns to steer the prior's denoising towards the original.",
    ),
)
CURVES = {  # choice: what one looks at first; the rest is in MLflow
    "loss": ("Training loss", ""),
    "validation/loss": ("Validation loss", "fixed pictures, fixed noise"),
    "validation/psnr_stage1": ("Validation PSNR of stage 1", "dB, fixed pictures"),
}


def trainings(config: ReportConfig, tracking: str | None) -> list[Training]:
    """Both stages, as far as they were run."""
    root = open_store(config.input)
    found = [training(root.child(getattr(config, name)), tracking, title, what) for name, title, what in STAGES]
    return [one for one in found if one is not None]


def training(folder: Store, tracking: str | None, title: str, what: str) -> Training | None:
    """One run, or None if there is none in the folder."""
    if not folder.exists("run.json"):
        return None
    config: dict[str, Any] = json.loads(folder.read("run.json"))["config"]
    finished: dict[str, Any] = json.loads(folder.read("finished.json")) if folder.exists("finished.json") else {}
    run_id = finished.get("tracker_run_id")
    metrics = read_metrics(tracking, run_id) if tracking and run_id and run_id != "local" else {}
    return Training(title=title, what=what, curves=curves(metrics), facts=facts(config, finished))


def curves(metrics: dict[str, list[tuple[int, float]]]) -> list[Curve]:
    """The curves worth a look."""
    return [Curve(title=title, points=metrics[name], unit=unit) for name, (title, unit) in CURVES.items() if name in metrics]


def facts(config: dict[str, Any], finished: dict[str, Any]) -> list[tuple[str, str]]:
    """What one wants to know of a run before its curves."""
    batch, engine, launch = config["batch"], config["engine"], config["launch"]
    kind = f"DeepSpeed ZeRO-{engine['zero_stage']}" if engine["kind"] == "zero" else "plain (DDP)"
    return [
        ("steps", f"{finished.get('steps', 0)} of {config['steps']}"),
        ("batch", str(batch["global_batch"])),
        ("crops", f"{batch['crop_px']} px"),
        ("workers", str(launch["workers"])),
        ("engine", kind),
        ("degradation", batch["degradation"].replace("_", "-")),
        ("learning rate", f"{config['optimizer']['lr']:g}"),
    ]


def parameters(config: ReportConfig) -> list[tuple[str, str]]:
    """How large the networks are, counted from their files."""
    root = open_store(config.input)
    places = (("parameters of the prior", open_store(config.prior)), ("of the adaptor", root.child(config.adaptor)))
    counted = [(name, count_parameters(store)) for name, store in places]
    return [(name, f"{count / 1e6:.1f} million") for name, count in counted if count]


def count_parameters(folder: Store) -> int:
    """Numbers in the safetensors files of a folder of weights (checkpoints of a run are not counted)."""
    keys = [entry.key for entry in folder.list() if entry.key.endswith(".safetensors") and "checkpoint" not in entry.key]
    return sum(_count(folder, key) for key in keys)


def _count(folder: Store, key: str) -> int:
    with folder.open(key) as file:
        (length,) = struct.unpack("<Q", file.read(8))  # safetensors: 8 bytes of length, then a JSON header
        header = json.loads(file.read(length))
    return sum(_product(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
