"""Before a start: what a command can know of its addresses, without networks and without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infra.storage import StorageError
from tests.corpora import corpus, negatives
from training import folders, preflight
from training.recipes import AdaptorConfig, adaptor_tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> AdaptorConfig:
    folder = tmp_path_factory.mktemp("preflight")
    (folder / "encoder").mkdir()
    data = {"input": corpus(folder / "c", photos=1, side_px=64), "negatives": negatives(folder / "n", photos=1)}
    return replace(adaptor_tiny(), **data, output=str(folder / "out"), encoder=str(folder / "encoder"))


@pytest.mark.parametrize("inside", ["", "/runs/1"])
@pytest.mark.parametrize(
    ("read", "what"),
    [
        ("input", "the dataset of photographs"),
        ("negatives", "the dataset of negatives"),
        ("encoder", "the encoder"),
        ("prior", "the prior"),
    ],
)
def test_a_run_does_not_write_among_what_it_reads(config: AdaptorConfig, read: str, what: str, inside: str) -> None:
    address = folders.find(getattr(config, read))
    with pytest.raises(ValueError, match=rf"--output {address}{inside} lies in {what} .*: choose a folder beside it"):
        preflight.make_plan(replace(config, output=address + inside), memory=False)
    preflight.make_plan(replace(config, output=f"{address}-run"), memory=False)


def test_weights_and_output_in_a_bucket_want_credentials_too(config: AdaptorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in preflight.CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    plan = preflight.make_plan(replace(config, prior="s3://models/sdxl", output="s3://runs/1"), memory=False)
    assert plan.found is not None, "the data are here, and were looked at"
    with pytest.raises(ValueError, match=r"cannot start: credentials: set AWS_ACCESS_KEY_ID .* without: s3://models/sdxl, s3://runs/1"):
        preflight.refuse_missing(plan)


@pytest.mark.parametrize("place", ["/proc/nowhere", "a file/below"])
def test_an_output_that_cannot_be_written_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(StorageError, match=r"(cannot be written .*|is a file, expected a folder): choose another"):
        preflight.check_output(str(tmp_path / place))


def test_weights_are_a_folder_or_one_file(tmp_path: Path) -> None:
    (tmp_path / "sdxl.safetensors").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("")
    assert folders.local_weights(str(tmp_path)) == tmp_path
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "sdxl.safetensors").symlink_to(tmp_path / "sdxl.safetensors")  # as a hub's cache has it
    for file in ("sdxl.safetensors", "snapshot/sdxl.safetensors"):
        assert folders.local_weights(f"{tmp_path}/{file}") == tmp_path / file
    for name, words in (("notes.txt", "is a file, expected a folder of weights, or a file that ends with"), ("no.ckpt", "does not exist")):
        with pytest.raises(ValueError, match=words):
            folders.local_weights(f"{tmp_path}/{name}")


def test_more_workers_than_cores_are_told(config: AdaptorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(preflight.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    many = replace(config, launch=replace(config.launch, workers=4), batch=replace(config.batch, micro_batch=2))
    assert any("2 for 4 workers of 1 threads" in line for line in preflight.make_plan(many, memory=False).lines)
    assert not any("wait for each other" in line for line in preflight.make_plan(config, memory=False).lines)
