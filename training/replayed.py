"""A dumped step, run again in one process: the same micro batches through the same weights."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from infra.config import from_dict
from training.dump import Dump
from training.recipes import AdaptorConfig, EncoderConfig, RunConfig
from training.recipes_replay import ReplayConfig
from training.stages import build_stage


def replay(config: ReplayConfig, found: Dump) -> int:
    """0: the number that was not finite came out again; 1: it did not. Says which samples and which gradients."""
    facts, device = found.facts, device_of(config.device)
    stage = build_stage(run_config(config, found), [], device)
    torch.set_num_threads(max(1, int(facts.config["launch"]["threads"])))
    stage.step.load_state_dict(found.weights, strict=False)
    passes = sum(len(batches) for batches, _ in found.shares)
    was, now = torch.cat([loss_B for _, loss_B in found.shares]), []
    for batches, _ in found.shares:
        for batch in batches:
            loss, parts = stage.step({k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
            (loss / passes).backward()
            now.append(parts["loss_B"].float().cpu())
    is_B = torch.cat(now)
    for i, (before, after) in enumerate(zip(was.tolist(), is_B.tolist(), strict=True)):
        print(f"  sample {i}: loss was {before}, is {after}")
    bad = [name for name, p in stage.step.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    print(f"  gradients that are not finite: {len(bad)} parameters{': ' + ', '.join(bad[:4]) if bad else ''}")
    squares = [p.grad.double().square().sum() for p in stage.step.parameters() if p.grad is not None]
    value = float(is_B.double().mean()) if facts.what == "loss" else float(torch.stack(squares).sum().sqrt())
    again = not math.isfinite(value)
    print(f"replay: the {facts.what} was {facts.value}, is {value}: {'it came out again' if again else 'it did not come out again'}")
    return 0 if again else 1


def device_of(name: str) -> torch.device:
    """A device that computes here. ValueError if it is none."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        why = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} does not compute on this machine ({why}): --set device=cpu, or cuda:0 on another") from error
    return device


def run_config(config: ReplayConfig, found: Dump) -> RunConfig:
    """The run's configuration, with the folders of this machine. ValueError if the dump is of another version."""
    kind: type[EncoderConfig] | type[AdaptorConfig] = EncoderConfig if found.facts.stage == "encoder" else AdaptorConfig
    run: EncoderConfig | AdaptorConfig = from_dict(kind, found.facts.config)
    run = replace(run, prior=config.prior or run.prior)
    return replace(run, encoder=config.encoder) if isinstance(run, AdaptorConfig) and config.encoder else run
