"""The cluster files hold what the recipes ask for. None has been tried on a cluster; what can be known without one is checked here."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.config import build_parser, resolve
from training.recipes import ADAPTOR_RECIPES

ROOT = Path(__file__).resolve().parents[3]
CLUSTERS = ROOT / "infra" / "clusters"


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTERS / "kuberay-training.yaml").read_text())
    return found


def test_every_cluster_file_is_yaml_and_says_that_it_was_not_tried() -> None:
    files = sorted(CLUSTERS.glob("*.yaml"))
    assert len(files) == 2
    for path in files:
        assert yaml.safe_load(path.read_text())
        assert "Not tried" in path.read_text()


def test_jobs_find_a_group_with_gpus_and_one_without() -> None:
    cluster = yaml.safe_load((CLUSTERS / "aws.yaml").read_text())
    groups, head = cluster["available_node_types"], cluster["head_node_type"]
    assert set(groups) == {head, "cpu", "gpu"}
    assert groups[head]["resources"] == {"CPU": 0}, "no work on the head"
    assert groups["gpu"]["node_config"]["InstanceType"].startswith("p")
    assert groups["cpu"]["node_config"]["InstanceType"].startswith("c")
    assert all(groups[name]["min_workers"] == 0 < groups[name]["max_workers"] for name in ("cpu", "gpu")), "what is not used costs nothing"
    assert cluster["max_workers"] >= groups["cpu"]["max_workers"] + groups["gpu"]["max_workers"]


def test_the_training_fits_the_nodes_that_are_asked_for(job: dict[str, Any]) -> None:
    spec = job["spec"]["rayClusterSpec"]
    [group] = spec["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    launch = ADAPTOR_RECIPES["paper"]().launch
    gpus = int(limits["nvidia.com/gpu"])
    assert gpus * group["replicas"] == launch.workers * launch.gpus_per_worker == 64
    assert int(limits["cpu"]) >= gpus * launch.cpus_per_worker
    assert container["resources"]["requests"] == limits, "guaranteed: a pod that may be evicted for memory takes all 64 with it"
    assert spec["rayVersion"] == version("ray")
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_its_command_is_one_that_the_entry_takes(job: dict[str, Any]) -> None:
    python, script, *argv = shlex.split(job["spec"]["entrypoint"])
    assert (python, (ROOT / script).is_file()) == ("python", True)
    args = build_parser("train_adaptor", "", list(ADAPTOR_RECIPES), "tiny").parse_args(argv)
    config = resolve(ADAPTOR_RECIPES[args.recipe](), args)
    assert config.prior.startswith("/weights"), "mounted on the workers"
    assert config.output.startswith("s3://"), "all workers must see it"
