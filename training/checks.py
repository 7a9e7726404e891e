"""Pre-flight on the workers, before the first step: what only they can know. Each failure names its cure, and the worker.

Devices, a sum over all workers, storage that all of them see, one batch through the networks. Weights are loaded before and the tracker
is opened after this; both say themselves what is wrong (supir_model.prior, infra.tracking).
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from infra.storage import StorageError, Store, unique_name

if TYPE_CHECKING:
    from training.loop import Place, Stage
    from training.recipes import RunConfig

PROBE = b"written by the first worker"


def check_device(config: RunConfig, place: Place) -> None:
    """ValueError if a GPU was asked for and this worker has none, or one that does not compute."""
    if not config.launch.gpus_per_worker:
        return
    cure = "start the node with its GPUs (nvidia-smi), install torch for its CUDA, or --set launch.gpus_per_worker=0"
    if place.device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"{_who(place)}: launch.gpus_per_worker is {config.launch.gpus_per_worker:g}, torch sees no GPU: {cure}")
    try:
        total = float(torch.ones(8, device=place.device).sum())
    except RuntimeError as error:
        raise ValueError(f"{_who(place)}: the GPU does not compute ({error}): {cure}") from error
    assert total == 8, f"the GPU of {_who(place)} adds eight ones to {total}"


def check_group(place: Place) -> None:
    """ValueError unless a sum over all workers comes out."""
    if not dist.is_initialized():
        return
    kind = dist.get_backend()
    variable = "NCCL_SOCKET_IFNAME" if kind == "nccl" else "GLOO_SOCKET_IFNAME"
    cure = f"open the ports between the nodes, and set {variable} to the interface that joins them"
    total = torch.full((1,), float(place.rank + 1), device=place.device)
    try:
        dist.all_reduce(total)
    except RuntimeError as error:
        raise ValueError(f"{_who(place)}: {kind} cannot sum over {place.world} workers ({str(error)[:200]}): {cure}") from error
    expected = place.world * (place.world + 1) / 2
    if total.item() != expected:
        raise ValueError(f"{_who(place)}: {kind} sums 1 to {place.world} to {total.item():g}, expected {expected:g}: {cure}")


def check_storage(store: Store, place: Place) -> None:
    """ValueError on every worker unless what the first one writes can be read by all."""
    name: list[Any] = [None, ""]
    if place.rank == 0:
        name = _written(store)
    if dist.is_initialized():
        dist.broadcast_object_list(name, src=0)
    key, trouble = name
    complaints = _gathered(trouble or _unread(store, key), place)
    if place.rank == 0 and key:
        store.delete(key)
    if any(complaints):
        raise ValueError(next(filter(None, complaints)))


def _written(store: Store) -> list[Any]:
    key = unique_name("attempts/preflight", ".bin")
    try:
        store.put(key, PROBE)
    except StorageError as error:
        return [None, f"{store.url} cannot be written ({error}): choose another --output, or give the workers its credentials"]
    return [key, ""]


def _unread(store: Store, key: str) -> str:
    try:
        return "" if store.read(key) == PROBE else f"{store.url} gives back other bytes than were written: choose another --output"
    except StorageError as error:
        return f"what the first worker wrote is not there ({error}): --output must be a bucket, or a folder that all nodes share"


def check_batch(stage: Stage, samples: Callable[[], list[Any]], place: Place) -> None:
    """ValueError on every worker unless one micro batch of each goes through reading, networks and loss."""
    complaint = ""
    try:
        with torch.no_grad():
            loss, _ = stage.step(stage.collate(samples()))
        if not math.isfinite(float(loss)):
            complaint = f"the loss of the first batch is {float(loss)}: the weights of the prior do not fit precision or network"
    except torch.cuda.OutOfMemoryError as error:
        complaint = f"the first batch does not fit ({str(error)[:160]}): lower batch.micro_batch, see training/plan.py"
    except ValueError as error:  # says itself what to do
        complaint = str(error)
    except (StorageError, RuntimeError, KeyError) as error:
        complaint = f"the first batch does not go through ({type(error).__name__}: {str(error)[:300]}): look at the data and the weights"
    complaints = _gathered(complaint, place)
    if any(complaints):
        raise ValueError(next(filter(None, complaints)))


def _gathered(complaint: str, place: Place) -> list[str]:
    mine = f"{_who(place)}: {complaint}" if complaint else ""
    complaints = [mine] * place.world
    if dist.is_initialized():
        dist.all_gather_object(complaints, mine)
    return complaints


def _who(place: Place) -> str:
    return f"pre-flight, worker {place.rank} on {socket.gethostname()}"
