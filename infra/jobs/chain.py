"""The chain of the demo as the commands that a person would type."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

PHOTOGRAPHS, LOW_QUALITY = "examples/photos", "examples/low_quality"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One job: its name, and the command behind `python`."""

    job: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """As it is typed in a shell."""
        return "python " + shlex.join(self.arguments)


def chain(workspace: str) -> list[Step]:
    """Every job of the demo, in order, in a workspace."""
    corpus, negatives, page = f"{workspace}/corpus", f"{workspace}/negatives", f"{workspace}/index.html"
    encoder, adaptor = f"{workspace}/encoder", f"{workspace}/adaptor"
    trained = ("--set", f"encoder={encoder}/encoder", "--set", f"adaptor={adaptor}/adaptor")
    return [
        _step("pipelines/ingest.py", "--input", PHOTOGRAPHS, "--output", corpus, "--set", "source_name=examples"),
        _step("pipelines/curate.py", "--input", corpus),
        _step("pipelines/caption.py", "--input", corpus),
        _step("pipelines/negatives.py", "--input", corpus, "--output", negatives),
        _step("training/train_encoder.py", "--input", corpus, "--output", encoder),
        _step(
            "training/train_adaptor.py",
            "--input",
            corpus,
            "--output",
            adaptor,
            "--set",
            f"negatives={negatives}",
            "--set",
            f"encoder={encoder}/encoder",
        ),
        _step("pipelines/score.py", "--input", corpus, "--output", f"{workspace}/scored", *trained),
        _step("pipelines/restore.py", "--input", LOW_QUALITY, "--output", f"{workspace}/restored", *trained),
        _step("pipelines/report.py", "--input", workspace, "--output", page),
    ]


def _step(script: str, *arguments: str) -> Step:
    job = script.rsplit("/", 1)[1].removesuffix(".py")
    return Step(job=job, arguments=(script, *arguments))
