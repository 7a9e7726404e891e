"""Both entries as a person calls them, without Ray: plan, train, continue, end."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from infra.stores import open_store
from infra.tracking import read_metrics
from tests.corpora import corpus, negatives, random_prior
from tests.helpers import ROOT, entry_env, free_port
from training import checkpoint, replay, train_adaptor, train_encoder

SMALL = ["--set", "launch.launcher=local", "--set", "engine.kind=plain", "--set", "batch.crop_px=32", "--set", "batch.short_side_px=48",
         "--set", "batch.global_batch=4", "--set", "batch.micro_batch=2", "--set", "validation.images=1", "--set", "steps=4",
         "--set", "checkpoint.every_steps=2", "--set", "validation.restore_steps=0"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    corpus(folder / "c", side_px=96)
    negatives(folder / "n")
    random_prior(folder / "prior")
    return folder


def encoder(place: Path, output: str, *more: str) -> int:
    return train_encoder.main(["--input", f"{place}/c", "--output", f"{place}/{output}", "--set", f"prior={place}/prior", *SMALL, *more])


def adaptor(place: Path, output: str, *more: str) -> int:
    sets = ["--set", f"prior={place}/prior", "--set", f"negatives={place}/n", "--set", "encoder=none"]
    return train_adaptor.main(["--input", f"{place}/c", "--output", f"{place}/{output}", *sets, *SMALL, *more])


def test_an_encoder_is_trained_and_the_same_command_again_ends_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encoder(place, "e") == 0
    assert json.loads((place / "e" / "encoder" / "config.json").read_text()) == {"trained": "encoder", "network": "tiny"}
    assert "validation/psnr_original_encoder" in capsys.readouterr().out
    assert encoder(place, "e") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert adaptor(place, "e") == 2, "another run's folder"


def test_an_adaptor_is_trained_on_that_encoder_and_can_be_loaded(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from supir_model.prior import load_components
    from supir_model.weights import load_adaptor, load_encoder

    assert encoder(place, "e2") == 0
    options = ["validation.restore_steps=2", "gt_latent=sample", "batch.true_sizes=true", "batch.timestep.kind=cubic", "min_snr_gamma=5"]
    options += ["compute.activation_checkpointing=true", "compute.nominal_tflop_s=0.05"]
    options += ["batch.degradation=real_esrgan=0.5,x4=0.5", f"encoder={place}/e2/encoder"]
    tracking = f"sqlite:///{place}/mlflow.db"
    assert adaptor(place, "a", "--tracking", tracking, *(word for option in options for word in ("--set", option))) == 0
    assert "validation/psnr_restored" in capsys.readouterr().out
    what_the_tracker_has(tracking, json.loads((place / "a" / "tracker.json").read_text())["run_id"], place / "a")
    components = load_components(place / "prior")
    trained = load_adaptor(place / "a" / "adaptor", components.unet)
    assert any(bool(p.detach().any()) for name, p in trained.named_parameters() if "hint" in name), "zero convolutions have moved"
    load_encoder(place / "e2" / "encoder", components.vae)


def what_the_tracker_has(uri: str, run_id: str, run: Path) -> None:
    """Of four steps of four images: every curve over images seen, pictures, and where the checkpoints lie."""
    from mlflow.tracking import MlflowClient

    logged, client = read_metrics(uri, run_id), MlflowClient(uri)
    for name in ("step", "loss", "error", "lr", "grad_norm", "images_per_s", "mfu", "data_wait_share", "memory_mb"):
        assert [seen for seen, _ in logged[name]] == [4, 8, 12, 16], name
    assert [seen for seen, _ in logged["save_stall_s"]] == [8, 16]
    assert any(name.startswith("loss_t") for name in logged)
    assert {"validation/psnr_restored", "validation/loss", "validation/loss/t062", "validation/loss/t937"} <= set(logged)
    shares = [mfu / rate for (_, mfu), (_, rate) in zip(logged["mfu"], logged["images_per_s"], strict=True)]
    assert shares == [pytest.approx(shares[0])] * 4, "MFU goes with images/s (its closed form: test_utilisation.py)"
    assert any("degraded_restored_original" in one.path for one in client.list_artifacts(run_id, "images"))
    manifests = {one.path for one in client.list_artifacts(run_id, checkpoint.FOLDER)}
    assert manifests == {checkpoint.manifest_key(2), checkpoint.manifest_key(4)}
    kept = client.get_run(run_id).data
    assert kept.tags["checkpoint"] == f"{run}/{checkpoint.manifest_key(4)}"
    assert kept.params["batch.timestep.kind"] == "cubic", "the whole configuration, field by field"


def test_a_run_that_is_cut_continues_with_equal_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adaptor(place, "whole") == 0
    assert adaptor(place, "cut", "--set", "launch.launcher=local") == 0
    store = open_store(str(place / "cut"))
    store.delete("finished.json")
    store.delete(checkpoint.manifest_key(4))  # as if it had been killed after step 2
    assert checkpoint.steps(store) == [2]
    assert adaptor(place, "cut") == 0
    weights = "adaptor/diffusion_pytorch_model.safetensors"
    assert (place / "whole" / weights).read_bytes() == (place / "cut" / weights).read_bytes()

    store.delete("finished.json")
    moments = next(place.glob("cut/checkpoints/files/step-00000004.*.exp_avg.safetensors"))
    for harmed in (moments, place / "cut" / checkpoint.manifest_key(4)):
        harmed.write_bytes(harmed.read_bytes()[:-4] + b"\0\0\0\1")
        capsys.readouterr()
        assert adaptor(place, "cut") == 0
        said = capsys.readouterr().out
        assert "checkpoint of step 4 is damaged" in said
        assert "continuing after step 2" in said
        assert (place / "whole" / weights).read_bytes() == (place / "cut" / weights).read_bytes()
        store.delete("finished.json")


def test_a_loss_that_is_not_finite_stops_the_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encoder(place, "nan", "--set", "optimizer.lr=1e30", "--set", "optimizer.warmup_steps=0") == 1
    error = capsys.readouterr().err
    assert "in step 2 (positions 4 to 7 of the sequence)" in error
    assert "Lower optimizer.lr" in error
    assert not (place / "nan" / "encoder").exists()
    assert replay.main(["--input", f"{place}/nan"]) == 0
    assert "it came out again" in capsys.readouterr().out
    assert replay.main(["--input", f"{place}/nan", "--set", "device=gpu"]) == 2
    assert "device 'gpu' does not compute on this machine" in capsys.readouterr().err
    store = open_store(f"{place}/nan")
    victim = next(entry.key for entry in store.list("dumps") if "/weights." in entry.key)
    data = store.read(victim)
    store.delete(victim)
    store.put(victim, data[:-1] + b"!")
    assert replay.main(["--input", f"{place}/nan"]) == 2
    assert "is not what the dump says" in capsys.readouterr().err
    store.delete(victim)
    assert replay.main(["--input", f"{place}/nan"]) == 2
    assert f"{victim} is missing, though the dump names it" in capsys.readouterr().err
    assert replay.main(["--input", f"{place}/c"]) == 2


def test_a_checkpoint_of_another_network_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encoder(place, "mixed") == 0
    store = open_store(str(place / "mixed"))
    store.delete("finished.json")
    path = place / "mixed" / checkpoint.manifest_key(4)
    manifest = json.loads(path.read_text())
    manifest["meta"]["network"] = {"trained": "encoder", "preset": "sdxl_paper", "shapes": "0"}
    path.write_text(json.dumps(manifest))
    assert encoder(place, "mixed") == 2
    error = capsys.readouterr().err
    assert "'sdxl_paper'" in error
    assert "'tiny'" in error


def test_a_prior_of_another_network_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encoder(place, "other", "--set", "network=sdxl_paper") == 2
    error = capsys.readouterr().err
    assert "prior is a prior of network 'tiny', this run trains 'sdxl_paper': choose another prior, or --set network=" in error
    assert not checkpoint.steps(open_store(f"{place}/other"))


def test_the_printed_loss_trains_with_a_warning_and_its_alarms_are_said_and_logged(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = f"sqlite:///{place}/mlflow.db"
    assert encoder(place, "paper", "--set", "loss=paper", "--set", "alarm_mean=0", "--tracking", tracking) == 0
    out = capsys.readouterr().out
    assert "a constant encoder minimises it" in out
    assert "alarm at step 1: decoded mean" in out
    run_id = json.loads((place / "paper" / "tracker.json").read_text())["run_id"]
    assert read_metrics(tracking, run_id)["alarm"] == [(seen, 1.0) for seen in (4, 8, 12, 16)]


@pytest.mark.parametrize("entry", [train_encoder, train_adaptor])
def test_the_paper_recipe_passes_a_dry_run_and_names_the_weights(
    entry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    assert entry.main(["--recipe", "paper", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "batch        256 = micro batch 4 x 1 passes x 64 workers, ZeRO-2, bf16" in out
    assert "missing      prior: weights/sdxl" in out
    assert "GiB a worker" in out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "batch.micro_batch=3"], "does not divide into 1 workers x micro batch 3"),
        (["--set", "batch.crop_px=33"], "expected a multiple of 16"),
        (["--set", "batch.short_side_px=20"], "smaller than batch.crop_px"),
        (["--set", "prior=/nowhere"], "prior: /nowhere is not there yet"),
        (["--set", "network=sdxl_papr"], "did you mean 'sdxl_paper'"),
        (["--set", "steps=0"], "steps is 0"),
        (["--set", "batch.degradation=real_esrgan=0.5,x4=0.4"], "the weights sum to 0.9, expected 1"),
        (["--set", "perceptual_weight=0.1"], "perceptual is not given: pass --set perceptual=FILE"),
        (["--set", "perceptual_weight=0.1", "--set", "perceptual=/no/vgg.safetensors"], "perceptual: /no/vgg.safetensors is not there yet"),
        (["--set", "engine.zero_stage=3"], "zero_stage"),
    ],
)
def test_what_cannot_start_says_why(place: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str) -> None:
    assert encoder(place, "refused", *more) == 2
    assert words in capsys.readouterr().err
    assert not (place / "refused" / "run.json").exists()


def test_a_tracker_that_does_not_answer_stops_the_start(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encoder(place, "untracked", "--tracking", f"http://127.0.0.1:{free_port()}") == 2
    error = capsys.readouterr().err
    assert "no MLflow server answers at http://127.0.0.1:" in error
    assert "start it (`make mlflow`), correct --tracking" in error
    assert not (place / "untracked" / "run.json").exists()


NO_PORTS = "echo '40000 40003' > /proc/sys/net/ipv4/ip_local_port_range"  # in a network of its own: four ports, for everybody in it


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rn", "sh", "-c", NO_PORTS], capture_output=True, check=False).returncode != 0,
    reason="a network of few ports is made in a namespace of its own, which this machine does not allow",
)
def test_a_machine_without_free_ports_is_told_before_ray_is_started(place: Path) -> None:
    command = [sys.executable, str(ROOT / "training" / "train_encoder.py"), "--input", f"{place}/c", "--output", f"{place}/unheard"]
    train = shlex.join([*command, "--set", f"prior={place}/prior"])
    script = f"{NO_PORTS} && exec {train}"
    done = subprocess.run(["unshare", "-rn", "sh", "-c", script], env=entry_env(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert "no free port: 4 could be taken of the 48 that Ray needs on this machine (Address already in use)" in done.stderr
    assert "--set launch.launcher=local" in done.stderr
    assert not (place / "unheard").exists(), "nothing was begun"


def test_shards_that_do_not_fit_into_memory_are_told_before_the_run(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra import machine

    assert encoder(place, "fits", "--dry-run") == 0
    assert "GiB of shards in memory a worker" in capsys.readouterr().out
    monkeypatch.setattr(machine, "available_bytes", lambda: 1000)
    assert encoder(place, "refused", "--dry-run") == 2
    assert "GiB are available: --set batch.window_shards=1" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    assert encoder(place, "elsewhere", "--dry-run") == 0


def test_of_two_trainings_into_one_folder_the_second_stops(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from infra.lease import lease

    store = open_store(f"{place}/shared")
    with lease(store, "train_encoder"):
        assert encoder(place, "shared") == 2
    assert "another job is at work on 'train_encoder'" in capsys.readouterr().err
    assert not store.exists("run.json"), "the second has begun nothing"
    assert encoder(place, "shared") == 0
    assert list(store.list("leases")) == []
