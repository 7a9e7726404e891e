"""The loop of both stages: next samples, forward and backward, one update; log, validate, save. Written without a cluster.

Everything that decides a step is a function of its number, so the loop keeps no state but the engine's: it can be killed
after any instruction and the same command continues with the samples that would have come next.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from infra.config import to_dict
from infra.metrics import Metric
from infra.outbox import Point
from infra.storage import Store
from infra.tracking import Tracker
from training import checkpoint, dump, interruption, sequence
from training.batches import Sample, prefetch
from training.engines import WEIGHTS, Engine, Micro
from training.recipes import Arithmetic, OptimizerOptions, RunConfig
from training.timesteps import TIMESTEPS

QUARTERS = 4  # the loss is logged by quarter of the timesteps too: the mean over all hides what happens at either end
PROGRESS_EVERY_S = 5.0  # choice: often enough to see that it moves
Say = Callable[[str], None]


class NotFinite(ArithmeticError):
    """A loss or a gradient is not a number; the message says where, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a look at the fixed pictures gave: numbers, and pictures uint8 HWC by name."""

    metrics: dict[str, float]
    pictures: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


class Stage(Protocol):
    """A stage of training: the module that a step minimises, how samples become its batch, what is looked at and what is left."""

    @property
    def name(self) -> str:
        """What is trained: "encoder" or "adaptor"."""
        ...

    @property
    def step(self) -> torch.nn.Module: ...

    def collate(self, samples: list[Sample]) -> dict[str, Any]: ...
    def validate(self) -> Validation: ...
    def alarms(self, metrics: dict[str, float]) -> list[str]: ...
    def export(self, weights: dict[str, torch.Tensor]) -> dict[str, bytes]: ...


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this worker stands: its rank, how many there are, its device."""

    rank: int
    world: int
    device: torch.device


def learning_rate(options: OptimizerOptions, step: int, steps: int) -> float:
    """Of the update that follows `step` updates: linear warm-up, then linear to `lr_end_fraction` at the last."""
    warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    after = max(0, step - options.warmup_steps) / max(1, steps - 1 - options.warmup_steps)
    return options.lr * warm * (1 + (options.lr_end_fraction - 1) * min(1.0, after))


@dataclass(kw_only=True)
class Loop:
    """One run on one worker; every worker runs the same."""

    config: RunConfig
    cut: Arithmetic
    place: Place
    stage: Stage
    engine: Engine
    sample: Callable[[int], Sample]
    store: Store
    run: str  # digest of the run's record
    tracker: Tracker | None  # on rank 0
    say: Say
    full_images_per_s: float | None = None  # at which MFU is 1 (training/utilisation.py); None: MFU is not logged
    asked: Callable[[], bool] = interruption.ASKED.is_set  # whether this worker was told to save and end
    stop: bool = False  # whether any worker was, as of the newest step

    def train(self) -> None:
        """From the newest checkpoint to the last step, export included. Raises NotFinite, NotSaved and Interrupted."""
        writer = checkpoint.Writer(self.store, self.config.checkpoint.keep, self.say, self._register)
        try:
            first = self._resume()
            self._steps(first, writer)
            writer.wait(must=True)
        finally:
            writer.close()
        weights = self._export_weights()
        if weights is not None:
            export(self.store, self.stage.name, self.stage.export(weights))

    @property
    def _network(self) -> checkpoint.Network:
        named = {name: p for name, p in self.stage.step.named_parameters() if p.requires_grad}
        return checkpoint.network_of(self.stage.name, self.config.network, named)

    def _resume(self) -> int:
        """Take over the newest state, the same one on every worker; returns the steps that are done."""
        found: list[Any] = [None]
        loaded = None
        if self.place.rank == 0:
            loaded = checkpoint.newest(self.store, self.say)
            checkpoint.sweep(self.store)
            found = [loaded.meta.step if loaded else None]
        if dist.is_initialized():
            dist.broadcast_object_list(found, src=0)
        if found[0] is None:
            return 0
        loaded = loaded or checkpoint.read(self.store, found[0])
        checkpoint.check_network(loaded.meta.network, self._network, f"{self.store.url}/{checkpoint.manifest_key(found[0])}")
        self.engine.load(loaded.parts, loaded.meta.optimizer_step)
        if self.tracker is not None:
            for at, values in loaded.meta.unlogged:
                self.tracker.metrics(values, at)
            for step in checkpoint.steps(self.store):  # whoever saved them may have been killed before it said so
                self._register(step)
        self.say(f"continuing after step {loaded.meta.step}, saved by {loaded.meta.world} workers")
        return loaded.meta.step

    def _steps(self, first: int, writer: checkpoint.Writer) -> None:
        config, clock = self.config, Clock(self.say, self.full_images_per_s)
        if first == 0:
            self._validate(0)
        batches = prefetch(self._samples, first, config.steps, config.batch.decode_ahead, config.batch.decode_threads)
        for step, (samples, waited_s) in enumerate(batches, first):
            metrics = self._step(step, samples)
            done = step + 1
            metrics |= clock.tick(done, config.steps, len(samples) * self.place.world, waited_s, metrics["loss"])
            self._log(metrics, done)
            if done % config.validation.every_steps == 0 or done == config.steps:
                self._validate(done)
            if done % config.checkpoint.every_steps == 0 or done == config.steps or self.stop:
                self._save(done, writer)
            if self.stop and done < config.steps:
                writer.wait(must=True)
                raise interruption.Interrupted(f"asked to end (SIGTERM): step {done} is saved, the same command continues after it")

    def _samples(self, step: int) -> list[Sample]:
        mine = sequence.positions(step, global_batch=self.config.batch.global_batch, world=self.place.world, rank=self.place.rank)
        return [self.sample(position) for position in mine]

    def _step(self, step: int, samples: list[Sample]) -> dict[str, float]:
        size = self.cut.micro_batch
        chunks = [samples[i : i + size] for i in range(0, len(samples), size)]
        batches = [self.stage.collate(chunk) for chunk in chunks]
        micros = self.engine.accumulate(batches)
        metrics = self._means(micros, samples)
        taken = dump.Taken(samples=samples, batches=batches, loss_B=torch.cat([micro.parts["loss_B"] for micro in micros]))
        self._must_be_finite("loss", metrics["loss"], step, taken)
        lr = learning_rate(self.config.optimizer, step, self.config.steps)
        norm = self.engine.update(lr)
        self._must_be_finite("gradient norm", norm, step, taken)
        return metrics | {"lr": lr, "grad_norm": norm}

    def _means(self, micros: list[Micro], samples: list[Sample]) -> dict[str, float]:
        """Means over the whole batch, over all workers: of the loss, of every part, and of the loss by quarter of the timesteps.

        Whether any worker was asked to end travels along, so that all of them know it after the same step.
        """
        names = [name for name in sorted(micros[0].parts) if name != "loss_B"]
        loss_B = torch.cat([micro.parts["loss_B"] for micro in micros]).double()
        parts = [torch.cat([micro.parts[name] for micro in micros]).double().sum() for name in names]
        quarter_B = torch.tensor([s.timestep * QUARTERS // TIMESTEPS for s in samples], device=loss_B.device)
        in_quarter = [quarter_B == q for q in range(QUARTERS)]
        sums = [loss_B.sum(), *parts, *(loss_B[m].sum() for m in in_quarter), *(m.sum().double() for m in in_quarter)]
        total = torch.stack([*sums, loss_B.new_tensor(float(self.asked()))])
        if dist.is_initialized():
            dist.all_reduce(total)
        *values, asked = total.tolist()
        self.stop = asked > 0
        mean = [value / (len(samples) * self.place.world) for value in values[: 1 + len(names)]]
        metrics = {"loss": mean[0], **{name.removesuffix("_B"): value for name, value in zip(names, mean[1:], strict=True)}}
        if self.stage.name == "adaptor":
            by_quarter = zip(values[-2 * QUARTERS : -QUARTERS], values[-QUARTERS:], strict=True)
            metrics |= {f"loss_t{q + 1}of{QUARTERS}": part / count for q, (part, count) in enumerate(by_quarter) if count}
        return metrics

    def _must_be_finite(self, what: str, value: float, step: int, taken: dump.Taken) -> None:
        """Every worker sees the same reduced number, so all of them dump their share and stop here together."""
        if math.isfinite(value):
            return
        size, rank = self.config.batch.global_batch, self.place.rank
        mine = dump.write_share(self.store, step + 1, rank, taken, self.engine.gather(WEIGHTS))
        workers = [mine] * self.place.world
        if dist.is_initialized():
            dist.all_gather_object(workers, mine)
        saved, told = checkpoint.steps(self.store), ""
        if rank == 0:
            facts = dump.Facts(
                step=step + 1, what=what, value=str(value), world=self.place.world, checkpoint=saved[-1] if saved else None,
                stage=self.stage.name, run=self.run, config=to_dict(self.config),
            )  # fmt: skip
            told = "; " + dump.write_facts(self.store, facts, workers)
        raise NotFinite(
            f"the {what} is {value} in step {step + 1} (positions {step * size} to {(step + 1) * size - 1} of the sequence): stopped "
            f"before the weights were changed; {dump.guilty(workers)}. The last checkpoint is of step {saved[-1] if saved else 'none'}. "
            f"Lower optimizer.lr or set optimizer.grad_clip in a new --output, and look at these images{told}"
        )

    def _log(self, metrics: dict[str, float], step: int) -> None:
        if self.place.rank != 0:
            return
        for alarm in self.stage.alarms(metrics):
            self.say(f"alarm at step {step}: {alarm}")
            metrics = metrics | {"alarm": 1.0}
        if self.tracker is not None:
            done = {Metric.STEP: float(step)}
            self.tracker.metrics({Metric(name).value: value for name, value in (metrics | done).items()}, self._seen(step))

    def _seen(self, step: int) -> int:
        """Images of the updates up to this one: the x of every curve."""
        return step * self.config.batch.global_batch

    def _validate(self, step: int) -> None:
        """On rank 0; the others wait at the next collective."""
        if self.place.rank != 0:
            return
        with torch.no_grad():
            found = self.stage.validate()
        shown = "  ".join(f"{name} {value:.3f}" for name, value in found.metrics.items() if name.count("/") == 1)
        self.say(f"step {step}: {shown}" if shown else f"step {step}: nothing to validate on")
        if self.tracker is not None:
            self.tracker.metrics({Metric(name).value: value for name, value in found.metrics.items()}, self._seen(step))
            for name, rgb_HWC in found.pictures.items():
                self.tracker.image(name, rgb_HWC, self._seen(step))

    def _save(self, step: int, writer: checkpoint.Writer) -> None:
        begun = time.perf_counter()
        parts = {part: self.engine.gather(part) for part in self.engine.parts}
        if self.place.rank != 0:
            return
        meta = checkpoint.Meta(
            step=step,
            next_position=self._seen(step),
            optimizer_step=self.engine.optimizer_step,
            network=self._network,
            run=self.run,
            tracker_run_id=self.tracker.run_id if self.tracker else "",
            world=self.place.world,
        )
        writer.save(meta, {part: named for part, named in parts.items() if named is not None}, self._unlogged)
        if self.tracker is not None:
            self.tracker.metrics({Metric.SAVE_STALL_S.value: time.perf_counter() - begun}, self._seen(step))

    def _register(self, step: int) -> None:
        """A checkpoint that exists becomes known to the run: its address and manifest as an artifact, the newest as a tag."""
        if self.tracker is None:
            return
        key = checkpoint.manifest_key(step)
        address, manifest = f"{self.store.url}/{key}", checkpoint.read_manifest(self.store, step)
        manifest["meta"].pop("unlogged")
        self.tracker.artifact(key, json.dumps({"address": address, **manifest}, indent=1).encode())
        self.tracker.tags({"checkpoint": address})

    def _unlogged(self) -> list[Point]:
        """In the writer's thread: what is logged up to here must not be lost, for these steps will not come again."""
        if self.tracker is None:
            return []
        self.tracker.flush()
        return self.tracker.unsent()

    def _export_weights(self) -> dict[str, torch.Tensor] | None:
        return self.engine.gather("ema" if "ema" in self.engine.parts else WEIGHTS)


def export(store: Store, folder: str, files: dict[str, bytes]) -> None:
    """The weights as a folder that others load: config.json last, so that a folder with one is whole."""
    for name in sorted(files, key=lambda name: (name == "config.json", name)):
        store.delete(f"{folder}/{name}")
        store.put(f"{folder}/{name}", files[name])


class Clock:
    """Rates, and a line of progress now and then."""

    def __init__(self, say: Say, full_images_per_s: float | None = None) -> None:
        self._say, self._full = say, full_images_per_s
        self._begun = self._last = self._spoken = time.perf_counter()
        self._steps = 0

    def tick(self, done: int, steps: int, images: int, waited_s: float, loss: float) -> dict[str, float]:
        """Once a step: images/s, MFU where it is known, the share of the step that was spent waiting for data, memory in MB."""
        now = time.perf_counter()
        took_s, self._last = now - self._last, now
        self._steps += 1
        rate, share = images / took_s, min(1.0, waited_s / took_s)
        mfu = {"mfu": rate / self._full} if self._full else {}
        if now - self._spoken > PROGRESS_EVERY_S or done == steps or self._steps == 1:
            self._spoken = now
            left_s = (steps - done) * (now - self._begun) / self._steps
            waiting = f"{share:.0%} of it waiting for data" + "".join(f", MFU {value:.1%}" for value in mfu.values())
            self._say(f"step {done}/{steps}  loss {loss:.4f}  {rate:.1f} images/s, {waiting}  {left_s / 60:.1f} min left")
        return {"images_per_s": rate, **mfu, "data_wait_share": share, "memory_mb": memory_mb()}


def memory_mb() -> float:
    """The most that this process has held: of the GPU where there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
