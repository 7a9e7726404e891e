"""Read a workspace: datasets, training runs, the record of commands. What is not there is named, not invented."""

from __future__ import annotations

from datetime import UTC, datetime

from pipelines.page import runs
from pipelines.page.content import Page
from pipelines.page.corpus import Corpus
from pipelines.page.results import Results
from pipelines.recipes.report import ReportConfig


def collect(config: ReportConfig, tracking: str | None) -> Page:
    """Everything that the page shows, from a workspace."""
    corpus = Corpus(config)
    results = Results(config, corpus)
    trainings = runs.trainings(config, tracking)
    evaluations = results.evaluations()
    captions, negatives, restorations = corpus.captions(), results.negatives(), results.restorations()
    commands = results.commands()
    return Page(
        title=config.title,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        network=[*corpus.network(), *runs.parameters(config)],
        flow=corpus.flow(),
        rejects=corpus.rejects(),
        captions=captions,
        negatives=negatives,
        trainings=trainings,
        evaluations=evaluations,
        protocol=results.protocol(),
        restorations=restorations,
        commands=commands,
        environment=results.record.get("environment", {}),
        credits=corpus.credits(),
        mlflow=tracking,
        missing=[
            what
            for what, found in (
                ("captions", captions),
                ("negatives", negatives),
                ("training curves", trainings),
                ("scores", evaluations),
                ("restored pictures", restorations),
                ("commands", commands),
            )
            if not found
        ],
    )
