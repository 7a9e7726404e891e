"""A model on a real S3 server, wanted by two workers of a node at a time: one of them brings it, the other waits, both load it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra.stores import open_store
from pipelines.stages.weights import folder_identity
from tests.helpers import ROOT, S3Server, entry_env
from tests.tiny_models import tiny_llava

pytestmark = pytest.mark.integration

WORKER = """
import sys
from pipelines.stages import node_weights
from pipelines.stages.llava import LlavaSettings
brought = node_weights._bring
def told(*arguments):
    print("brought", flush=True)
    brought(*arguments)
node_weights._bring = told
captioner = LlavaSettings(model=sys.argv[1], max_new_tokens=4).build(sys.argv[2])
captioner.load()
print(captioner.identity.revision, captioner.describe([captioner.canary and __import__("pipelines.stages.captioner", fromlist=["x"])
      .known_picture(56)], [0])[0].text)
"""


def test_two_workers_bring_a_model_once(s3: str, s3_server: S3Server, tmp_path: Path) -> None:
    model = tiny_llava(tmp_path / "llava")
    store = open_store(f"{s3}/models/llava")
    for path in model.iterdir():
        store.put(path.name, path.read_bytes())
    identity = folder_identity(store.url)
    assert identity == folder_identity(str(model))
    env = entry_env(**s3_server.env, SUPIR_WEIGHTS_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, store.url, identity], env=env, cwd=tmp_path, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [worker.communicate(timeout=150) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    lines = [line for out, _ in said for line in out.splitlines() if line]
    assert lines.count("brought") == 1
    last = {out.splitlines()[-1] for out, _ in said}
    assert len(last) == 1
    assert last.pop().startswith(identity)
