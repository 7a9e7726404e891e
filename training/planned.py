"""The lines of a plan: what a training takes of memory, time, disk and money, each number with where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.recipes import AdaptorConfig, Arithmetic, RunConfig
from training.recipes_plan import Gpu, PlanConfig

if TYPE_CHECKING:
    from training.flops import Work

GIB, GB, TERA = 2**30, 1e9, 1e12
SECONDS_PER_DAY, SECONDS_PER_HOUR = 86_400, 3600
CORPUS_IMAGES = 20_000_000  # Sec. 3.2
LOSSES = 8  # of a validation of stage 2: training.stages.FIXED_TIMESTEPS
SAMPLE_CORE_S = 0.033  # measured (docs/results/step.md): one core decodes and degrades a sample of 512 px


@dataclass(frozen=True, kw_only=True)
class Line:
    """One number of the plan, and where it comes from."""

    what: str
    value: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Time:
    """Seconds of one update on one GPU, and of one validation, which the others wait for; how often each comes."""

    compute_s: float
    exchange_s: float
    validation_s: float
    steps: int
    validations: int

    @property
    def step_s(self) -> float:
        return self.compute_s + self.exchange_s

    @property
    def total_s(self) -> float:
        return self.steps * self.step_s + self.validations * self.validation_s


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A training on a cluster, counted: `parts` are bytes of one GPU, `together` the most of them at once, `work` FLOPs of a sample."""

    config: PlanConfig
    training: RunConfig
    gpu: Gpu
    cut: Arithmetic
    parts: dict[str, float]
    together: float
    work: Work

    @property
    def room(self) -> float:
        """Bytes of a GPU that a training may fill."""
        return room(self.config, self.gpu)

    @property
    def trained_bytes(self) -> float:
        """Of all trained parameters in fp32."""
        engine = self.training.engine
        return self.parts["gradients"] * (self.cut.world if engine.kind == "zero" and engine.zero_stage >= 2 else 1)

    def time(self, utilisation: float | None = None) -> Time:
        """At the utilisation of the configuration, or at another one."""
        rate = self.gpu.bf16_tflop_s * TERA * (utilisation or self.config.utilisation)
        return Time(
            compute_s=self.work.total * self.cut.per_worker / rate,
            exchange_s=exchanged_bytes(self.training, self.cut, self.trained_bytes) / (link_gb_s(self.config, self.gpu) * GB),
            validation_s=validation_work(self.training, self.work) / rate,
            steps=self.training.steps,
            validations=1 + -(-self.training.steps // self.training.validation.every_steps),
        )


def room(config: PlanConfig, gpu: Gpu) -> float:
    """Bytes of a GPU that a training may fill."""
    return gpu.memory_gib * GIB * (1 - config.memory_reserve)


def link_gb_s(config: PlanConfig, gpu: Gpu) -> float:
    """The slowest link of a ring of all GPUs: the one between nodes where there are several."""
    return gpu.within_gb_s if config.gpus <= config.gpus_per_node else min(gpu.within_gb_s, gpu.between_gb_s)


def exchanged_bytes(training: RunConfig, cut: Arithmetic, trained_bytes: float) -> float:
    """Through every link of a ring in one update: (N - 1) / N of the trained parameters for each reduction of gradients and once more for
    the weights (a sum without shards moves as much). ZeRO-2 keeps no whole gradient, so it reduces in every pass; others once.

    Nothing of it overlaps with computing (the engine's choice for equal losses).
    """
    each_pass = training.engine.kind == "zero" and training.engine.zero_stage >= 2
    moves = 1 + (cut.accumulation if each_pass else 1)
    return moves * trained_bytes * (cut.world - 1) / cut.world


def validation_work(training: RunConfig, work: Work) -> float:
    """FLOPs of a look at the fixed pictures. Stage 1: both encoders and what the decoder makes of them, as much as a forward pass.

    Stage 2: the loss at eight timesteps, and the sampling steps of a restoration, each with and without the text.
    """
    of_one = work.forward
    if isinstance(training, AdaptorConfig):
        of_one = LOSSES * (work.encoding + work.text + work.forward) + 2 * training.validation.restore_steps * work.forward
    return training.validation.images * of_one


def lines(plan: Planned) -> Iterator[Line]:
    """All of them, in the order in which they are read."""
    config, training, cut = plan.config, plan.training, plan.cut
    yield Line(what="training", value=f"{config.stage}, {training.network}", origin=f"recipe {config.training} of train_{config.stage}")
    passes = f"{cut.micro_batch} x {cut.accumulation} passes x {cut.world} GPUs"
    whose = "recipe, with the micro batch given" if config.micro_batch else "recipe, cut for the cluster"
    yield Line(what="batch", value=f"{training.batch.global_batch} = {passes}", origin=whose)
    yield from memory_lines(plan)
    yield from work_lines(plan.work)
    took = plan.time()
    yield from time_lines(plan, took)
    yield from money_lines(config, training, took)


def memory_lines(plan: Planned) -> Iterator[Line]:
    """Bytes of one GPU by part."""
    recomputed = "counted: the most alive at once, blocks recomputed" if plan.training.compute.activation_checkpointing else ""
    origins = {
        "frozen": "counted: prior, autoencoder, text encoders, in the precision of the run",
        "trained": "counted: fp32, and the engine's share of the master copy",
        "gradients": "counted: fp32, this GPU's share",
        "moments": "counted: two of AdamW in fp32, this GPU's share",
        "buckets": "DeepSpeed's default: 500 M numbers in fp32",
        "average": "counted: fp32, this GPU's share",
        "activations": recomputed or "counted: what one forward pass keeps for the backward pass",
    }
    for part, size in plan.parts.items():
        if size:
            yield Line(what=f"memory: {part}", value=f"{size / GIB:.2f} GiB", origin=origins[part])
    yield Line(what="memory: together", value=f"{plan.together / GIB:.1f} GiB", origin="what is held at once")
    whose = "given" if plan.config.figures.memory_gib else "vendor"
    reserve = f"{plan.gpu.memory_gib:g} GiB of {plan.gpu.name} ({whose}) less {plan.config.memory_reserve:.0%} (choice)"
    yield Line(what="memory: room", value=f"{plan.room / GIB:.1f} GiB", origin=reserve)


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


def time_lines(plan: Planned, took: Time) -> Iterator[Line]:
    """Seconds, what they ask of storage and processors, and days."""
    config, training, gpu, figures = plan.config, plan.training, plan.gpu, plan.config.figures
    rate = f"{gpu.bf16_tflop_s:g} TFLOP/s ({'given' if figures.bf16_tflop_s else 'vendor'}) x {config.utilisation:g} (given)"
    yield Line(what="step: compute", value=f"{took.compute_s:.2f} s", origin=rate)
    whose = "given" if figures.within_gb_s or figures.between_gb_s else "usual for such nodes"
    link = f"gradients and weights in fp32 over {link_gb_s(config, gpu):g} GB/s ({whose}), not overlapped"
    yield Line(what="step: exchange", value=f"{took.exchange_s:.2f} s", origin=link if plan.cut.world > 1 else "one GPU")
    images_per_s = training.batch.global_batch / took.step_s
    reached = plan.work.useful * images_per_s / config.gpus / (gpu.bf16_tflop_s * TERA)
    yield Line(what="images a second", value=f"{images_per_s:.0f}", origin=f"batch / step; {reached:.1%} of nominal with the exchange")
    read = images_per_s * config.image_mb
    yield Line(what="reading", value=f"{read:.0f} MB/s", origin=f"images a second x {config.image_mb:g} MB (choice), all GPUs together")
    cores = images_per_s / config.gpus * SAMPLE_CORE_S * (training.batch.crop_px / 512) ** 2
    made = f"{SAMPLE_CORE_S * 1000:.0f} ms of a core for a sample of 512 px (measured on one: docs/results/step.md)"
    yield Line(what="cores a GPU", value=f"{cores:.1f} for data", origin=made)
    kept = training.checkpoint.keep * plan.trained_bytes * (4 if training.optimizer.ema_half_life_images else 3)
    held = "kept, weights, moments and average in fp32; one of them passes through the memory of the first node"
    yield Line(what="checkpoints", value=f"{kept / GIB:.1f} GiB", origin=f"counted: {training.checkpoint.keep} {held}")
    yield Line(what="steps", value=f"{training.steps:,}", origin="given" if config.steps else "recipe (the paper states none)")
    looked = f"{training.validation.images} fixed pictures on one GPU while the others wait, counted without their decoding"
    yield Line(what="validations", value=f"{took.validations} x {took.validation_s:.0f} s", origin=looked)
    days = "steps x step + validations; no start, no failure, no queue"
    yield Line(what="days", value=f"{took.total_s / SECONDS_PER_DAY:.1f}", origin=days)


def money_lines(config: PlanConfig, training: RunConfig, took: Time) -> Iterator[Line]:
    """What it costs, where prices are given."""
    prices, hours = config.prices, took.total_s / SECONDS_PER_HOUR
    as_of = f"as of {prices.date}" if prices.date else "no date given"
    gpu_hours = hours * config.gpus
    yield Line(what="GPU hours", value=f"{gpu_hours:,.0f}", origin="days x 24 x GPUs")
    if not any((prices.gpu_hour, prices.storage_gb_month, prices.traffic_gb)):
        told = "no prices: --set prices.gpu_hour=… (also storage_gb_month, traffic_gb) --set prices.date=…"
        yield Line(what="cost", value="not told", origin=told)
        return
    read_gb = training.steps * training.batch.global_batch * config.image_mb / 1000
    corpus_gb = CORPUS_IMAGES * config.image_mb / 1000
    costs = {
        "GPUs": (gpu_hours * prices.gpu_hour, f"{prices.gpu_hour:g} an hour"),
        "traffic": (read_gb * prices.traffic_gb, f"{read_gb:,.0f} GB read"),
        "storage": (corpus_gb * hours / 24 / 30 * prices.storage_gb_month, f"{corpus_gb:,.0f} GB of corpus for the run"),
    }
    for name, (cost, origin) in costs.items():
        if cost:
            yield Line(what=f"cost: {name}", value=f"{cost:,.0f}", origin=f"{origin}, {as_of}")
    yield Line(what="cost: together", value=f"{sum(cost for cost, _ in costs.values()):,.0f}", origin="sum, in the currency of the prices")
