#!/usr/bin/env python3
"""What a training will take, before it is paid for: memory by part, time a step, days, cost, and what to change where it does not fit.

    python training/plan.py --recipe paper_64xa6000
    python training/plan.py --recipe release_64xa6000 --gpu h200 --gpus 32 --set prices.gpu_hour=3.5 --set prices.date=2026-11-01

Every number is followed by where it comes from: counted from the network, given by the recipe, stated by a vendor, or chosen here. Times
rest on a utilisation that is given: measure yours.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from infra.config import ConfigError, RunOptions, run_entry, to_dict
from infra.local_store import replace_text
from training import planned
from training.planned import GIB, SECONDS_PER_DAY, Line, Planned, room
from training.recipes import ADAPTOR_RECIPES, ENCODER_RECIPES, Arithmetic, RunConfig, batch_arithmetic
from training.recipes_plan import GPUS, RECIPES, UNKNOWN, Gpu, PlanConfig

IN_TRAINING = {
    "micro_batch": "batch.micro_batch",
    "activation_checkpointing": "compute.activation_checkpointing",
    "offload_optimizer": "engine.offload_optimizer",
}
FLAGS = {"gpu": f"one of: {', '.join(GPUS)}; any other with --set figures.…", "gpus": "how many"}


def main(argv: list[str]) -> int:
    """Exit code 0: it fits; 1: it does not; 2: the question cannot be answered."""
    return run_entry(argv, prog="plan", summary=__doc__, recipes=RECIPES, main=run, default="paper_64xa6000", flags=FLAGS)


def run(config: PlanConfig, options: RunOptions) -> int:
    """Count, compute, print."""
    training, gpu = training_of(config), gpu_of(config)
    cut = cut_of(config, training)
    check_page(config.output)
    if options.dry_run:
        print(f"plan: would count {training.network} on {config.gpus} x {gpu.name}")
        return 0
    plan = counted(config, training, gpu, cut)
    told = list(planned.lines(plan))
    width = max(len(line.what) for line in told)
    print("\n".join(f"{line.what:<{width}}  {line.value:<24} {line.origin}".rstrip() for line in told), flush=True)
    fits = plan.together <= plan.room
    ending = verdict(plan, [] if fits else list(what_fits(config, gpu)))
    print(f"\n{ending}")
    if config.output:
        replace_text(Path(config.output).expanduser(), markdown(config, options.recipe, told, ending))
    return 0 if fits else 1


def counted(config: PlanConfig, training: RunConfig, gpu: Gpu, cut: Arithmetic) -> Planned:
    """Networks and a step of them on fake tensors: seconds."""
    from training.flops import count
    from training.memory import estimate, peak

    parts, work = estimate(training, cut), count(training)
    return Planned(
        config=config, training=training, gpu=gpu, cut=cut, parts=parts, together=peak(parts, training, cut), work=work
    )  # fmt: skip


def training_of(config: PlanConfig) -> RunConfig:
    """The training that is planned, on as many workers as there are GPUs."""
    stages: dict[str, Mapping[str, Callable[[], RunConfig]]] = {"encoder": ENCODER_RECIPES, "adaptor": ADAPTOR_RECIPES}
    if config.stage not in stages:
        raise ConfigError(f"stage is {config.stage!r}, expected one of: {', '.join(stages)}")
    recipes = stages[config.stage]
    if config.training not in recipes:
        raise ConfigError(f"training is {config.training!r}, no recipe of train_{config.stage}: known are {', '.join(recipes)}")
    found = recipes[config.training]()
    batch = replace(found.batch, micro_batch=config.micro_batch or found.batch.micro_batch)
    engine = replace(
        found.engine,
        zero_stage=config.zero_stage or found.engine.zero_stage,
        offload_optimizer=config.offload_optimizer or found.engine.offload_optimizer,
    )
    launch = replace(found.launch, workers=config.gpus)
    recompute = config.activation_checkpointing or found.compute.activation_checkpointing
    compute = replace(found.compute, activation_checkpointing=recompute)
    network, steps = config.network or found.network, config.steps or found.steps
    return replace(found, batch=batch, engine=engine, compute=compute, launch=launch, network=network, steps=steps)


def gpu_of(config: PlanConfig) -> Gpu:
    """What is known of the GPU, and what is given. ConfigError that names the nearest one, and how to give an unknown one's figures."""
    known = GPUS.get(config.gpu, replace(UNKNOWN, name=config.gpu))
    gpu = replace(known, **{name: value for name, value in vars(config.figures).items() if value})
    if not gpu.memory_gib or not gpu.bf16_tflop_s:
        near = difflib.get_close_matches(config.gpu, GPUS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"nothing is known of a GPU {config.gpu!r}: {hint}Known: {', '.join(GPUS)}. Of any other give its vendor's figures: "
            "--set figures.memory_gib=… --set figures.bf16_tflop_s=… (dense), and figures.within_gb_s, figures.between_gb_s where its "
            "links are other than PCIe 4 and 100 Gbit/s"
        )
    return gpu


def cut_of(config: PlanConfig, training: RunConfig) -> Arithmetic:
    """The batch on these GPUs. ConfigError with the numbers of GPUs, or the micro batches, that would do."""
    lanes, size = training.batch.lanes, training.batch.global_batch
    if lanes % config.gpus or size % config.gpus:
        fit = [n for n in range(1, lanes + 1) if lanes % n == 0 and size % n == 0]
        near = [*[n for n in fit if n < config.gpus][-1:], *[n for n in fit if n > config.gpus][:1]]
        raise ConfigError(
            f"{config.gpus} GPUs: {lanes} lanes and a batch of {size} do not divide into {config.gpus} workers: "
            f"plan for --gpus {' or '.join(map(str, near))}"
        )
    share = size // config.gpus
    if share % training.batch.micro_batch:
        fit = [n for n in range(1, share + 1) if share % n == 0]
        raise ConfigError(f"micro_batch is {training.batch.micro_batch}, each of {config.gpus} GPUs has {share} samples: choose from {fit}")
    return batch_arithmetic(training.batch, config.gpus)


def check_page(output: str) -> None:
    """ConfigError before anything is counted, if the page cannot be written there."""
    if "://" in output:
        raise ConfigError(f"output {output!r}: the page is written to a local path")
    if output and Path(output).is_dir():
        raise ConfigError(f"output {output!r} is a folder: give the name of the page, e.g. {output.rstrip('/')}/plan.md")


def what_fits(config: PlanConfig, gpu: Gpu) -> Iterator[str]:
    """The mildest change that fits, with the memory that it would take, and how the training is told of it."""
    from training.memory import estimate, peak

    own = training_of(config).batch.micro_batch
    smaller = [n for n in (8, 4, 2, 1) if n < own]
    tries: list[dict[str, int | bool]] = [{"micro_batch": n} for n in smaller]
    tries += [{"micro_batch": n, "activation_checkpointing": True} for n in (own, *smaller)]
    tries += [{"micro_batch": n, "offload_optimizer": True} for n in (own, *smaller)]
    tries += [{"micro_batch": n, "activation_checkpointing": True, "offload_optimizer": True} for n in (own, *smaller)]
    for change in tries:
        training = training_of(replace(config, **change))  # type: ignore[arg-type]
        if training.batch.global_batch // config.gpus % training.batch.micro_batch:
            continue
        cut = batch_arithmetic(training.batch, config.gpus)
        total = peak(estimate(training, cut), training, cut)
        if total <= room(config, gpu):
            flags = " ".join(f"--set {name}={str(value).lower()}" for name, value in change.items())
            told = " ".join(f"--set {IN_TRAINING[name]}={str(value).lower()}" for name, value in change.items())
            slower = "; the update then runs on the processor, whose time is not counted" if "offload_optimizer" in change else ""
            yield f"{flags} ({total / GIB:.1f} GiB{slower}). The training is told by {told}"
            return


def verdict(plan: Planned, advice: list[str]) -> str:
    """Whether it fits and how long it takes, and what to change."""
    left = (plan.room - plan.together) / GIB
    if left < 0:
        none = "No smaller micro batch, recomputation or offload fits: take a larger GPU or more"
        return f"It does not fit: {-left:.1f} GiB too much. {f'This would fit: {advice[0]}' if advice else none}"
    given = plan.config.utilisation
    days, slower = (plan.time(share).total_s / SECONDS_PER_DAY for share in (given, given * 2 / 3))
    return (
        f"It fits, with {left:.1f} GiB to spare. It takes {days:.1f} days if the GPUs reach {given:.0%} of their nominal speed while they "
        f"compute, {slower:.1f} at {given * 2 / 3:.0%}: measure yours (docs/results/step.md) and give it as --set utilisation=…"
    )


def markdown(config: PlanConfig, recipe: str, told: list[Line], ending: str) -> str:
    """The plan as a page of docs/results/, with the command that makes it again."""
    rows = "\n".join(f"| {line.what} | {line.value} | {line.origin} |" for line in told)
    flags = " ".join(f"--set {name}={value}" for name, value in changed(to_dict(RECIPES[recipe]()), to_dict(config)))
    command = " ".join(filter(None, [f"python training/plan.py --recipe {recipe}", flags, f"--output {config.output}"]))
    head = f"# Plan: {recipe}\n\n    {command}\n\n| what | value | origin |\n| --- | --- | --- |"
    return f"{head}\n{rows}\n\n{ending}\n"


def changed(recipe: dict[str, Any], config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields that are not the recipe's, by dotted name; where the page goes is none of them."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from changed(recipe[name], value, f"{prefix}{name}.")
        elif value != recipe[name] and name != "output":
            yield f"{prefix}{name}", str(value).lower() if isinstance(value, bool) else value


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
