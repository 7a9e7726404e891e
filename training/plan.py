#!/usr/bin/env python3
"""What a training will take, before it is paid for: memory by part, time a step, days, cost, and what to change where it does not fit.

    python training/plan.py --recipe paper_64xa6000
    python training/plan.py --recipe release_64xa6000 --gpu h200 --gpus 32 --set prices.gpu_hour=3.5 --set prices.date=2026-11-01

Every number is followed by where it comes from: counted from the network, given by the recipe, stated by a vendor, or chosen here. Times
rest on a utilisation that is given: measure yours.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from infra.config import ConfigError, RunOptions, run_entry
from training.recipes import ADAPTOR_RECIPES, ENCODER_RECIPES, Arithmetic, RunConfig, batch_arithmetic
from training.recipes_plan import GPUS, RECIPES, Gpu, PlanConfig

if TYPE_CHECKING:
    from training.flops import Work

GIB, GB, TERA = 2**30, 1e9, 1e12
SECONDS_PER_DAY, SECONDS_PER_HOUR = 86_400, 3600
FLAGS = {"gpu": f"one of: {', '.join(GPUS)}", "gpus": "how many"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One number of the plan, and where it comes from."""

    what: str
    value: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one update on one GPU."""

    compute_s: float
    exchange_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.exchange_s


def main(argv: list[str]) -> int:
    """Exit code 0: it fits; 1: it does not; 2: the question cannot be answered."""
    return run_entry(argv, prog="plan", summary=__doc__, recipes=RECIPES, main=run, default="paper_64xa6000", flags=FLAGS)


def run(config: PlanConfig, options: RunOptions) -> int:
    """Count, compute, print."""
    training, gpu = training_of(config), gpu_of(config)
    cut = batch_arithmetic(training.batch, config.gpus)
    if options.dry_run:
        print(f"plan: would count {training.network} on {config.gpus} x {gpu.name}")
        return 0
    from training.flops import count
    from training.memory import estimate, peak

    parts, work = estimate(training, cut), count(training)
    lines = list(plan(config, training, gpu, cut, parts, work))
    width = max(len(line.what) for line in lines)
    print("\n".join(f"{line.what:<{width}}  {line.value:<24} {line.origin}".rstrip() for line in lines), flush=True)
    left = room(config, gpu) - peak(parts, training, cut)
    advice = [] if left >= 0 else list(what_fits(config, gpu))
    print(f"\n{verdict(left, advice)}")
    if config.output:
        write_markdown(config, options.recipe, lines, verdict(left, advice))
    return 0 if left >= 0 else 1


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
        zero_stage=config.zero_stage or found.engine.zero_stage,  # type: ignore[arg-type]
        offload_optimizer=config.offload_optimizer or found.engine.offload_optimizer,
    )
    launch = replace(found.launch, workers=config.gpus)
    recompute = config.activation_checkpointing or found.compute.activation_checkpointing
    compute = replace(found.compute, activation_checkpointing=recompute)
    network, steps = config.network or found.network, config.steps or found.steps
    return replace(found, batch=batch, engine=engine, compute=compute, launch=launch, network=network, steps=steps)


def gpu_of(config: PlanConfig) -> Gpu:
    """What is known of the GPU. ConfigError that names the nearest one."""
    if config.gpu not in GPUS:
        near = difflib.get_close_matches(config.gpu, GPUS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"nothing is known of a GPU {config.gpu!r}: {hint}Known: {', '.join(GPUS)}; add one to training/recipes_plan.py")
    if not 0 < config.utilisation <= 1:
        raise ConfigError(f"utilisation is {config.utilisation}, expected a share of the nominal FLOP/s, above 0 and up to 1")
    return GPUS[config.gpu]


def room(config: PlanConfig, gpu: Gpu) -> float:
    """Bytes of a GPU that a training may fill."""
    return gpu.memory_gib * GIB * (1 - config.memory_reserve)


def step_time(config: PlanConfig, gpu: Gpu, cut: Arithmetic, trained_bytes: float, work: Work) -> StepTime:
    """Compute, and after it the exchange of gradients and weights, which does not overlap (the engine's choice for equal losses).

    Reduce-scatter and all-gather each move (N - 1) / N of the trained parameters through every link of a ring of all GPUs; the slowest
    link counts, which is the one between nodes where there are several.
    """
    compute_s = work.total * cut.per_worker / (gpu.bf16_tflop_s * TERA * config.utilisation)
    moved = 2 * trained_bytes * (cut.world - 1) / cut.world
    return StepTime(compute_s=compute_s, exchange_s=moved / (link_gb_s(config, gpu) * GB))


def link_gb_s(config: PlanConfig, gpu: Gpu) -> float:
    """The slowest link of the ring."""
    return gpu.within_gb_s if config.gpus <= config.gpus_per_node else min(gpu.within_gb_s, gpu.between_gb_s)


def plan(config: PlanConfig, training: RunConfig, gpu: Gpu, cut: Arithmetic, parts: dict[str, float], work: Work) -> Iterator[Line]:
    """The lines of the plan."""
    from training.memory import peak

    batch = training.batch.global_batch
    yield Line(what="training", value=f"{config.stage}, {training.network}", origin=f"recipe {config.training} of train_{config.stage}")
    passes = f"{cut.micro_batch} x {cut.accumulation} passes x {cut.world} GPUs"
    yield Line(what="batch", value=f"{batch} = {passes}", origin="recipe, cut for the cluster")
    yield from memory_lines(config, training, gpu, parts, peak(parts, training, cut))
    yield from work_lines(work)
    trained = parts["gradients"] * (cut.world if training.engine.kind == "zero" and training.engine.zero_stage >= 2 else 1)
    took = step_time(config, gpu, cut, trained, work)
    yield from time_lines(config, training, gpu, took, work)
    yield from money_lines(config, training, took)


def memory_lines(config: PlanConfig, training: RunConfig, gpu: Gpu, parts: dict[str, float], together: float) -> Iterator[Line]:
    """Bytes of one GPU by part."""
    recomputed = "counted: the most alive at once, blocks recomputed" if training.compute.activation_checkpointing else ""
    origins = {
        "frozen": "counted: prior, autoencoder, text encoders, in the precision of the run",
        "trained": "counted: fp32, and the engine's share of the master copy",
        "gradients": "counted: fp32, this GPU's share",
        "moments": "counted: two of AdamW in fp32, this GPU's share",
        "buckets": "DeepSpeed's default: 500 M numbers in fp32",
        "average": "counted: fp32, this GPU's share",
        "activations": recomputed or "counted: what one forward pass keeps for the backward pass",
    }
    for part, size in parts.items():
        yield Line(what=f"memory: {part}", value=f"{size / GIB:.2f} GiB", origin=origins[part])
    yield Line(what="memory: together", value=f"{together / GIB:.1f} GiB", origin="what is held at once")
    reserve = f"{gpu.memory_gib:g} GiB of {gpu.name} (vendor) less {config.memory_reserve:.0%} (choice)"
    yield Line(what="memory: room", value=f"{room(config, gpu) / GIB:.1f} GiB", origin=reserve)


def work_lines(work: Work) -> Iterator[Line]:
    """TFLOP of one sample."""
    origins = {
        "encoding": "both pictures, no gradients",
        "text": "both text encoders",
        "forward": "the network",
        "backward": "the network",
        "recomputed": "blocks once more in the backward pass",
    }
    for part, what in origins.items():
        if value := getattr(work, part):
            yield Line(what=f"work a sample: {part}", value=f"{value / TERA:.2f} TFLOP", origin=f"counted: {what}")
    yield Line(what="work a sample: together", value=f"{work.total / TERA:.2f} TFLOP", origin="sum")


def time_lines(config: PlanConfig, training: RunConfig, gpu: Gpu, took: StepTime, work: Work) -> Iterator[Line]:
    """Seconds and days."""
    rate = f"{gpu.bf16_tflop_s:g} TFLOP/s (vendor) x {config.utilisation:g} (given)"
    yield Line(what="step: compute", value=f"{took.compute_s:.2f} s", origin=rate)
    link = f"gradients and weights in fp32 over {link_gb_s(config, gpu):g} GB/s (usual for such nodes), not overlapped"
    yield Line(what="step: exchange", value=f"{took.exchange_s:.2f} s", origin=link)
    images_per_s = training.batch.global_batch / took.total_s
    reached = work.useful * images_per_s / config.gpus / (gpu.bf16_tflop_s * TERA)
    yield Line(what="images a second", value=f"{images_per_s:.0f}", origin=f"batch / step; {reached:.1%} of nominal with the exchange")
    read = images_per_s * config.image_mb
    yield Line(what="reading", value=f"{read:.0f} MB/s", origin=f"images a second x {config.image_mb:g} MB (choice), all GPUs together")
    yield Line(what="steps", value=f"{training.steps:,}", origin="recipe (the paper states none)")
    yield Line(what="days", value=f"{training.steps * took.total_s / SECONDS_PER_DAY:.1f}", origin="steps x step")


def money_lines(config: PlanConfig, training: RunConfig, took: StepTime) -> Iterator[Line]:
    """What it costs, where prices are given."""
    prices, hours = config.prices, training.steps * took.total_s / SECONDS_PER_HOUR
    as_of = f"as of {prices.date}" if prices.date else "no date given"
    gpu_hours = hours * config.gpus
    yield Line(what="GPU hours", value=f"{gpu_hours:,.0f}", origin="days x 24 x GPUs")
    if not any((prices.gpu_hour, prices.storage_gb_month, prices.traffic_gb)):
        yield Line(what="cost", value="not told", origin="no prices: --set prices.gpu_hour=… --set prices.date=…")
        return
    images = training.steps * training.batch.global_batch
    read_gb = images * config.image_mb / 1000
    corpus_gb = 20_000_000 * config.image_mb / 1000  # Sec. 3.2: 20 million images
    yield Line(what="cost: GPUs", value=f"{gpu_hours * prices.gpu_hour:,.0f}", origin=f"{prices.gpu_hour:g} an hour, {as_of}")
    if prices.traffic_gb:
        yield Line(what="cost: traffic", value=f"{read_gb * prices.traffic_gb:,.0f}", origin=f"{read_gb:,.0f} GB read, {as_of}")
    if prices.storage_gb_month:
        months = hours / 24 / 30
        stored = corpus_gb * months * prices.storage_gb_month
        yield Line(what="cost: storage", value=f"{stored:,.0f}", origin=f"{corpus_gb:,.0f} GB for the run, {as_of}")


def what_fits(config: PlanConfig, gpu: Gpu) -> Iterator[str]:
    """Changes, the mildest first, each with the memory that it would take; those that fit."""
    from training.memory import estimate, peak

    own = training_of(config).batch.micro_batch
    smaller = [n for n in (8, 4, 2, 1) if n < own]
    tries: list[dict[str, int | bool]] = [{"micro_batch": n} for n in smaller]
    tries += [{"micro_batch": n, "activation_checkpointing": True} for n in (own, *smaller)]
    tries += [{"micro_batch": n, "offload_optimizer": True} for n in (own, *smaller)]
    tries += [{"micro_batch": n, "activation_checkpointing": True, "offload_optimizer": True} for n in (own, *smaller)]
    for change in tries:
        changed = replace(config, **change)  # type: ignore[arg-type]
        training = training_of(changed)
        cut = batch_arithmetic(training.batch, config.gpus)
        total = peak(estimate(training, cut), training, cut)
        if total <= room(config, gpu):
            flags = " ".join(f"--set {key}={str(value).lower()}" for key, value in change.items())
            yield f"{flags} ({total / GIB:.1f} GiB)"
            return


def verdict(left: float, advice: list[str]) -> str:
    """Whether it fits, and what to change."""
    if left >= 0:
        return f"It fits, with {left / GIB:.1f} GiB to spare."
    cure = f"This would fit: {advice[0]}" if advice else "No smaller micro batch, recomputation or offload fits: take a larger GPU or more"
    return f"It does not fit: {-left / GIB:.1f} GiB too much. {cure}"


def write_markdown(config: PlanConfig, recipe: str, lines: list[Line], ending: str) -> None:
    """The plan as a page of docs/results/."""
    from pathlib import Path

    rows = "\n".join(f"| {line.what} | {line.value} | {line.origin} |" for line in lines)
    command = f"python training/plan.py --recipe {recipe} --output {config.output}"
    head = f"# Plan: {recipe}\n\n    {command}\n\n| what | value | origin |\n| --- | --- | --- |"
    Path(config.output).write_text(f"{head}\n{rows}\n\n{ending}\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
