"""One command from several sources to a selection."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from infra.config import ConfigError
from infra.dataset import Dataset
from pipelines import corpus
from pipelines.recipes.corpus import tiny
from tests.helpers import photographs
from tests.unit.pipelines.conftest import here  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("here")


def test_a_folder_and_another_in_one_command(tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    for n, path in enumerate(photographs(4)):
        (tmp_path / f"source{n % 2}").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / f"source{n % 2}" / path.name)
    sources = f'sources=["{tmp_path}/source0", "paper_20m={tmp_path}/source1"]'
    command = ["--output", str(tmp_path / "corpus"), "--set", sources]
    assert corpus.main([*command, "--dry-run"]) == 0
    assert "planned when the images are there" in capsys.readouterr().out
    assert corpus.main(command) == 0
    dataset = Dataset(str(tmp_path / "corpus"))
    assert dataset.snapshot("images").rows == 4
    assert dataset.snapshot("selections").ledger.total == 4
    here.clear()
    assert corpus.main(command) == 0
    assert here == [], "the same command does what is pending: nothing"


def test_a_source_is_ingested_as_its_recipe_says_with_what_all_share() -> None:
    config = replace(tiny(), output="out")
    config = replace(config, ingest=replace(config.ingest, web=replace(config.ingest.web, contact="me@example.org"), max_pixels=7))
    found = corpus.source(config, "pd12m=s3://sources/PD12M/metadata")
    assert (found.source_name, found.input, found.output, found.max_pixels) == ("pd12m", "s3://sources/PD12M/metadata", "out", 7)
    assert (found.web.contact, found.web.host_in_flight) == ("me@example.org", 64), "who asks is shared, how often is the recipe's"
    assert corpus.source(config, "a=b/photos").input == "a=b/photos", "no recipe of that name: an address"
    ours = replace(config.ingest, columns=replace(config.ingest.columns, url="link"), web=replace(config.ingest.web, attempts=1))
    found = corpus.source(replace(config, ingest=ours), "pd12m=list.parquet")
    assert (found.columns.url, found.columns.licence_url, found.web.attempts) == ("link", "license", 1), "what was set by hand holds"
    with pytest.raises(ConfigError, match="did you mean 'pd12m'"):
        corpus.source(config, "pd12=list.parquet")


def test_no_source_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert corpus.main(["--set", "sources=[]"]) == 2
    assert "sources is empty" in capsys.readouterr().err
