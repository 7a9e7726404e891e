"""What both training entries do: plan, check, begin or continue, train."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from infra.config import RunOptions
from infra.lease import lease
from infra.storage import StorageError
from infra.stores import open_store
from infra.tracking import check_tracking
from training import preflight, record
from training.checkpoint import NotSaved
from training.folders import find
from training.interruption import EXIT_CODE, Interrupted
from training.job import Job
from training.launch import Stopped, launch
from training.recipes import AdaptorConfig, EncoderConfig, RunConfig


def run(config: RunConfig, options: RunOptions) -> int:
    """0: trained, or already finished; 1: stopped while training; 75: asked to end by SIGTERM, and saved."""
    config = _with_found_folders(config)
    stage = "encoder" if isinstance(config, EncoderConfig) else "adaptor"
    if isinstance(config, EncoderConfig) and config.loss == "paper":
        print("warning: loss=paper is the printed formula; a constant encoder minimises it, watch the alarms (docs/numerics.md)")
    store, begun = open_store(config.output), time.monotonic()
    if not options.dry_run and 0 < config.steps <= record.finished_steps(store):
        found = record.with_weights(record.survey(config, captions=stage == "adaptor"))
        record.begin_or_continue(config.output, found)  # the same run, or an error
        print(f"finished: {config.steps} steps are done, the weights are in {store.url}/{stage}; nothing to do")
        return 0
    plan = preflight.make_plan(config, memory=options.dry_run)
    preflight.show(plan, f"train_{stage}", options)
    if options.dry_run:
        return 0
    found = preflight.refuse_missing(plan)
    preflight.check_ports(config)
    preflight.check_output(config.output)
    check_tracking(options.tracking)
    with lease(store, f"train_{stage}"):
        print("  weights      are read and hashed: by what they hold the run is known", flush=True)
        record.begin_or_continue(config.output, record.with_weights(found))
        try:
            launch(Job(config=config, tracking=options.tracking))
        except (Stopped, NotSaved, ArithmeticError, StorageError) as reason:
            print(f"train_{stage} stopped: {reason}", file=sys.stderr)
            return 1
        except Interrupted as reason:
            print(f"train_{stage} interrupted: {reason}", file=sys.stderr)
            return EXIT_CODE
    print(f"finished in {time.monotonic() - begun:.0f} s: the weights are in {store.url}/{stage}")
    return 0


def _with_found_folders(config: RunConfig) -> RunConfig:
    """Workers have another current folder than the command."""
    found = replace(config, output=open_store(config.output).url, prior=find(config.prior))
    if isinstance(found, AdaptorConfig) and found.encoder:
        return replace(found, encoder=find(found.encoder))
    return found
