"""Checkpoints: whole or absent, verified, kept by policy, refused by another network."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path

import pytest
import torch

from infra.stores import open_store
from tests.toys import Crash, CrashingStore
from training import checkpoint
from training.checkpoint import Meta, Network

NETWORK = Network(trained="adaptor", preset="tiny", shapes="abc")


def meta(step: int) -> Meta:
    return Meta(step=step, next_position=8 * step, optimizer_step=step, network=NETWORK, run="r", tracker_run_id="t", world=2)


def parts(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {part: {"a.weight": torch.full((3, 2), value), "b": torch.tensor([value])} for part in ("weights", "exp_avg", "exp_avg_sq")}


def test_what_is_saved_is_read_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for step in (10, 20, 30):
        checkpoint.save(store, meta(step), parts(step), keep=2)
    assert checkpoint.steps(store) == [20, 30]
    loaded = checkpoint.newest(store, print)
    assert loaded is not None
    assert loaded.meta == meta(30)
    assert torch.equal(loaded.parts["exp_avg"]["a.weight"], torch.full((3, 2), 30.0))
    assert len(list(store.list("checkpoints/files"))) == 6


MANIFESTS = {"cut": "{not json", "another thing": "[]", "no files": '{"format": 1}', "no state": '{"format": 1, "files": {}, "meta": {}}'}


@pytest.mark.parametrize("harm", ["alter", "remove", *MANIFESTS])
def test_a_damaged_newest_gives_way_to_the_one_before_with_a_word(tmp_path: Path, harm: str) -> None:
    store, said = open_store(str(tmp_path)), []
    for step in (10, 20):
        checkpoint.save(store, meta(step), parts(step), keep=2)
    victim = next(tmp_path.glob("checkpoints/files/step-00000020.*.exp_avg.safetensors"))
    if harm == "alter":
        victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    elif harm == "remove":
        victim.unlink()
    else:
        (tmp_path / "checkpoints" / "step-00000020.json").write_text(MANIFESTS[harm])
    loaded = checkpoint.newest(store, said.append)
    checkpoint.sweep(store)  # as a start does
    assert loaded is not None
    assert loaded.meta.step == 10
    assert "step 20 is damaged" in said[0]
    assert "the one of step 10 is used" in said[0]
    checkpoint.save(store, meta(20), parts(20), keep=2)  # reached again: it can be saved again
    again = checkpoint.newest(store, said.append)
    assert again is not None
    assert again.meta.step == 20


def test_where_none_is_whole_nothing_is_thrown_away_and_a_person_decides(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for step in (10, 20):
        checkpoint.save(store, meta(step), parts(step), keep=2)
        next(tmp_path.glob(f"checkpoints/files/step-{step:08d}.*.weights.safetensors")).write_bytes(b"cut")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* is whole \(step 20: .*; step 10: .*\): restore them .* anew"):
        checkpoint.newest(store, print)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_version_is_no_damage(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    checkpoint.save(store, meta(10), parts(10), keep=2)
    (tmp_path / "checkpoints" / "step-00000020.json").write_text('{"format": 2, "files": {}}')
    (tmp_path / "checkpoints" / "step-best.json").write_text("somebody's note")
    assert checkpoint.steps(store) == [10, 20]
    with pytest.raises(ValueError, match=r"step-00000020\.json has format 2, expected 1: continue with the version"):
        checkpoint.newest(store, print)


@pytest.mark.parametrize("moment", ["before", "middle", "after"])
@pytest.mark.parametrize("operation", range(12))
def test_a_save_that_is_cut_anywhere_leaves_a_whole_newest_checkpoint(tmp_path: Path, operation: int, moment: str) -> None:
    store = open_store(str(tmp_path))
    checkpoint.save(store, meta(10), parts(10), keep=1)
    with contextlib.suppress(Crash):
        checkpoint.save(CrashingStore(str(tmp_path), operation, moment), meta(20), parts(20), keep=1)  # type: ignore[arg-type]
    loaded = checkpoint.newest(store, print)
    assert loaded is not None
    assert loaded.parts["weights"]["b"].item() == loaded.meta.step
    checkpoint.sweep(store)
    assert checkpoint.newest(store, print) is not None


def test_another_network_is_refused_by_both_names() -> None:
    other = Network(trained="adaptor", preset="sdxl_paper", shapes="def")
    with pytest.raises(ValueError, match=r"'tiny'.*'sdxl_paper'"):
        checkpoint.check_network(NETWORK, other, "the checkpoint")


def test_a_failed_save_is_told_and_the_second_in_a_row_ends_the_training(tmp_path: Path) -> None:
    blocked, said = tmp_path / "checkpoints", []
    blocked.write_text("a file where a folder must be")
    writer = checkpoint.Writer(open_store(str(tmp_path)), keep=1, say=said.append)
    writer.save(meta(1), parts(1))
    writer.wait()
    assert "the checkpoint of step 1 could not be saved" in said[0]
    blocked.unlink()
    writer.save(meta(2), parts(2))  # a save that succeeds forgives
    writer.wait()
    shutil.rmtree(blocked)
    blocked.write_text("again")
    writer.save(meta(3), parts(3))
    writer.save(meta(4), parts(4))
    with pytest.raises(checkpoint.NotSaved, match=r"2 saves in a row have failed: .*checkpoints"):
        writer.wait()
    writer.save(meta(5), parts(5))
    with pytest.raises(checkpoint.NotSaved):
        writer.wait(must=True)
    writer.close()


def test_what_the_tracker_has_not_confirmed_is_in_the_checkpoint_and_a_slow_disk_stalls_no_step(tmp_path: Path) -> None:
    writer, asked = checkpoint.Writer(open_store(str(tmp_path)), keep=1, say=print), threading.Event()

    def unlogged() -> list[tuple[int, dict[str, float]]]:
        assert asked.wait(20), "asked in the writer's thread: the step has gone on meanwhile"
        return [(7, {"loss": 0.5})]

    writer.save(meta(1), parts(1), unlogged)
    asked.set()
    writer.close()
    loaded = checkpoint.newest(open_store(str(tmp_path)), print)
    assert loaded is not None
    assert [(step, values) for step, values in loaded.meta.unlogged] == [(7, {"loss": 0.5})]
