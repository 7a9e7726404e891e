"""Tables through the whole job: URLs from a real server, pictures in Parquet, img2dataset's outputs, what is wrong with them, retries."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.dataset import Dataset
from pipelines import ingest
from pipelines.inputs_table import ShardLimits, Wanted
from pipelines.recipes.ingest import RECIPES, IngestConfig
from pipelines.sources import Source
from pipelines.table_columns import Columns
from pipelines.table_shards import TableOptions, pieces
from tests.helpers import photographs, shrunk
from tests.unit.pipelines.conftest import here  # noqa: F401  (a fixture)
from tests.unit.pipelines.stages.test_fetch import tar_file
from tests.unit.pipelines.web.conftest import WebServer

WEB = ("--set", "web.contact=corpus@example.org", "--set", 'web.allow_networks=["127.0.0.1/32"]', "--set", "web.host_per_s=0",
       "--set", "web.attempts=1", "--set", "web.deadline_s=2")
pytestmark = pytest.mark.usefixtures("here")


def run(*args: object, expect: int = 0) -> None:
    assert ingest.main([str(arg) for arg in args]) == expect


def rows(dataset: Dataset, table: str) -> list[dict[str, Any]]:
    return [row for ref in dataset.snapshot(table).shards.values() for row in dataset.read(ref).to_pylist()]


def outcomes(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Position -> (status, reason)."""
    names = {row["source_id"]: row["position"] for row in rows(dataset, "inputs")}
    found = [o for ref in dataset.snapshot("images").shards.values() for o in dataset.outcomes(ref)]
    return {names[one.row_id]: (one.status, one.reason) for one in found}


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_a_table_of_urls_with_everything_that_is_wrong_in_it(server: WebServer, tmp_path: Path) -> None:
    secret = server.url("/signed.png?X-Amz-Signature=verysecret&w=1").replace("http://", "http://user:hunter2@")
    urls = [server.url("/good.png?1"), None, server.url("/404.png"), server.url("/good.png?1"), "file:///etc/passwd", secret,
            server.url("/x" * 6000), server.url("/noai.png"), " ", server.url("/good.png?2")]
    table = parquet(tmp_path / "list.parquet", URL=urls, TEXT=[f"caption {i}" for i in range(10)],
                    License=["CC0"] * 9 + ["all rights reserved"], author=["Ada"] * 10)
    run("--input", table, "--output", tmp_path / "ds", "--set", "shard.rows=4", "--set", 'wanted.licences=["cc0"]', *WEB)
    dataset = Dataset(str(tmp_path / "ds"))
    assert outcomes(dataset) == {
        "list.parquet#1": ("failed", "null_url"), "list.parquet#2": ("failed", "http_404"), "list.parquet#3": ("rejected", "duplicate_url"),
        "list.parquet#4": ("failed", "bad_scheme"), "list.parquet#6": ("failed", "url_too_long"), "list.parquet#7": ("rejected", "noai"),
        "list.parquet#8": ("failed", "null_url"), "list.parquet#9": ("rejected", "licence")}
    first, signed = rows(dataset, "images")
    assert (first["bytes"], first["licence"], first["attribution"], first["source_url"]) == (server.picture, "CC0", "Ada", urls[0])
    assert [row["caption_source"] for row in rows(dataset, "inputs")] == [f"caption {i}" for i in range(10)]
    assert signed["source_url"] == server.url("/signed.png?X-Amz-Signature=REDACTED&w=1")
    exposed = [path for path in (tmp_path / "ds").rglob("*") if path.is_file() and path.parent.name != "inputs"
               and (b"verysecret" in path.read_bytes() or b"hunter2" in path.read_bytes())]
    assert not exposed
    assert not any("verysecret" in str(one) for name in ("images",) for one in rows(dataset, name))


def test_a_retry_asks_again_for_what_may_have_come(server: WebServer, tmp_path: Path, here: list[str],  # noqa: F811
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text(f"{server.url('/appears.png')}\n\n{server.url('/disallowed/z.png')}\n{server.url('/good.png')}\n")
    command = ("--input", tmp_path / "list.txt", "--output", tmp_path / "ds", *WEB)
    run(*command)
    dataset = Dataset(str(tmp_path / "ds"))
    assert outcomes(dataset) == {"list.txt#0": ("failed", "http_404"), "list.txt#1": ("rejected", "robots")}
    here.clear()
    run(*command)
    assert here == [], "nothing changed, so nothing is asked for"
    run(*command, "--set", "retry_failed=true")
    assert here == ["fetch 00001"]
    assert [row["attempt"] for row in rows(dataset, "inputs")] == [0, 0, 0, 1]
    assert len(rows(dataset, "images")) == 2
    whole = (tmp_path / "list.txt").read_text()
    (tmp_path / "list.txt").write_text("")
    run(*command, expect=2)
    assert "list.txt has 0 rows, 3 were listed before" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text(whole + server.url("/good.png?more") + "\n")
    run(*command)
    assert [row["position"] for row in rows(dataset, "inputs")][4:] == ["list.txt#3"], "what was appended is new, and it alone"


def test_a_killed_listing_goes_on_and_a_changed_table_is_refused(server: WebServer, tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    urls = [server.url(f"/good.png?{i}") for i in range(11)] + [server.url("/good.png?3")]
    table = parquet(tmp_path / "list.parquet", url=urls)
    command = ("--input", table, "--set", "shard.rows=3", "--set", "source_name=one", *WEB)
    run(*command, "--output", tmp_path / "calm")
    run(*command, "--output", tmp_path / "killed")
    for gone in ("commits/inputs/current", "commits/images", "images"):
        shutil.rmtree(tmp_path / "killed" / gone)
    for hole in ("00001", "00003"):  # commits are made side by side, so a kill may leave holes
        next((tmp_path / "killed/commits/inputs/inputs").glob(f"{hole}.*")).unlink()
    run(*command, "--output", tmp_path / "killed")
    calm, killed = Dataset(str(tmp_path / "calm")), Dataset(str(tmp_path / "killed"))
    assert [killed.snapshot(name).digest for name in ("inputs", "images")] == [calm.snapshot(name).digest for name in ("inputs", "images")]
    assert outcomes(killed) == {"list.parquet#11": ("rejected", "duplicate_url")}
    parquet(tmp_path / "list.parquet", url=["http://other/x.png", *urls[1:]])
    run(*command, "--output", tmp_path / "calm", expect=2)
    assert "rows 0 to 2 were listed before" in capsys.readouterr().err


@pytest.mark.parametrize(("columns", "flags", "told"), [
    ({"link": ["x"]}, (), "none is known to hold addresses"), ({"url": [1]}, (), "is int64, expected text"),
    ({"image_link": ["x"]}, ("--set", "columns.url=image_lnk"), "did you mean 'image_link'?"),
    ({"url": ["http://x/"], "caption": [["a", "b"]]}, (), "expected text or numbers"),
    ({"image": ["x"], "url": ["y"]}, ("--set", "columns.image=image"), "expected binary or a struct")])
def test_tables_that_cannot_be_used_are_told(columns: Any, flags: Any, told: str, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    table = parquet(tmp_path / "list.parquet", **columns)
    run("--input", table, "--output", tmp_path / "ds", *WEB, *flags, expect=2)
    error = capsys.readouterr().err
    assert "list.parquet" in error
    assert told in error
    assert "--set columns." in error or "did you mean" in error, "what to do"


def test_nobody_asks_without_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "urls.csv").write_text("url\nhttp://192.0.2.1/a.jpg\n")
    run("--input", tmp_path / "urls.csv", "--output", tmp_path / "ds", expect=2)
    assert "web.contact" in capsys.readouterr().err


def test_csv_with_short_rows_and_bytes_that_are_no_text(server: WebServer, tmp_path: Path) -> None:
    text = f"caption,url,width\n\"a, b\",{server.url('/good.png')},10\nshort\n\"two\nlines\",{server.url('/good.png?2')},x\n"
    (tmp_path / "urls.csv").write_bytes(text.encode() + b"caf\xe9,http://\xff/a.jpg,5\n")
    run("--input", tmp_path / "urls.csv", "--output", tmp_path / "ds", *WEB)
    dataset = Dataset(str(tmp_path / "ds"))
    assert {name: reason for name, (_, reason) in outcomes(dataset).items()}.keys() == {"urls.csv#1", "urls.csv#3"}
    assert [row["caption_source"] for row in rows(dataset, "inputs")] == ["a, b", "short", "two\nlines", "caf\ufffd"]


def test_tables_as_people_write_them(server: WebServer, tmp_path: Path) -> None:
    """Semicolons, a BOM and CRLF from a spreadsheet; comments in a text; sizes that nobody knows; text that is none; fields of structs."""
    good = [server.url(f"/good.png?people{i}") for i in range(8)]
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "a.csv").write_bytes(f"\ufeffURL;Caption\r\n\"{good[0]}\";a, b\r\n".encode())
    (folder / "aa.tsv").write_text(f"url\tcaption\n{good[7]}\t{'long ' * 40_000}\n", encoding="utf-16")
    (folder / "b.txt").write_text(f"# from Monday\n\n{good[1]}\n  {good[2]}\n")
    parquet(folder / "c.parquet", url=good[3:6], width=[2000.0, float("nan"), 0.0], height=[2000, 2000, 0])
    data = b"caf\xe9"
    broken = pa.StringArray.from_buffers(1, pa.array([0, len(data)], pa.int32()).buffers()[1], pa.py_buffer(data))
    parquet(folder / "d.parquet", url=[good[6]], caption=broken, license=[None])
    run("--input", folder, "--output", tmp_path / "ds", "--set", "lists=true", "--set", "wanted.min_short_side_px=1024", *WEB)
    dataset = Dataset(str(tmp_path / "ds"))
    assert outcomes(dataset) == {}
    assert [row["caption_source"] for row in rows(dataset, "inputs")] == ["a, b", "long " * 40_000, *[None] * 5, "caf\ufffd"]
    parquet(tmp_path / "e.parquet", data=[{"jpg": server.picture, "json": {"text": "deep"}}], caption=[["a", "b"]])
    nested = ("--set", "columns.image=data.jpg", "--set", "columns.caption=data.json.text")
    run("--input", tmp_path / "e.parquet", "--output", tmp_path / "nested", *nested)
    assert [row["caption_source"] for row in rows(Dataset(str(tmp_path / "nested")), "inputs")] == ["deep"]
    assert len(rows(Dataset(str(tmp_path / "nested")), "images")) == 1
    run("--input", tmp_path / "e.parquet", "--output", tmp_path / "left", *nested[:2], "--set", "columns.caption=none")


def test_a_gzip_that_is_damaged_and_a_column_that_stands_twice_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = bytearray(gzip.compress(b"url\n" + b"".join(b"http://h/%d\n" % i for i in range(9000)), mtime=0))
    packed[500:600] = bytes(range(100, 200))
    (tmp_path / "damaged.csv.gz").write_bytes(packed)
    twice = pa.Table.from_arrays([pa.array(["http://h/"])] * 2, names=["url", "url"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    for name, told in (("damaged.csv.gz", "fetch it again"), ("twice.parquet", "several columns 'url'")):
        run("--input", tmp_path / name, "--output", tmp_path / "ds", *WEB, expect=2)
        assert told in capsys.readouterr().err


def test_a_rate_is_shared_by_a_known_number(server: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text(server.url("/good.png") + "\n")
    command = ("--input", tmp_path / "list.txt", "--output", tmp_path / "ds", *WEB, "--set", "workers.workers=0")
    run(*command, "--set", "web.host_per_s=5", expect=2)
    assert "leaves open how many share it" in capsys.readouterr().err
    run(*command)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [shrunk(path, 48) for path in photographs(5)]


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_with_pictures_in_it(struct: bool, pictures: list[bytes], tmp_path: Path) -> None:
    cells: list[Any] = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)] if struct else list(pictures)
    cells[2] = {"bytes": None, "path": "elsewhere.png"} if struct else None
    folder = tmp_path / "hub"
    folder.mkdir()
    parquet(folder / "train-0.parquet", image=cells, text=list("abcde"), license=["CC0"] * 5)
    (folder / "cut.parquet").write_bytes((folder / "train-0.parquet").read_bytes()[:400])
    parquet(folder / "numbers.parquet", weights=[1.0, 2.0])
    run("--input", folder, "--output", tmp_path / "ds", "--set", "shard.rows=3")
    dataset = Dataset(str(tmp_path / "ds"))
    assert [row["bytes"] for row in rows(dataset, "images")] == pictures[:2] + pictures[3:]
    broken = {"cut.parquet": ("failed", "unreadable_table"), "numbers.parquet": ("failed", "unknown_schema")}
    assert outcomes(dataset) == {**broken, "train-0.parquet#2": ("failed", "empty")}
    assert {row["licence"] for row in rows(dataset, "images")} == {"CC0"}
    (folder / "cut.parquet").write_bytes((folder / "train-0.parquet").read_bytes())
    for _ in range(2):
        run("--input", folder, "--output", tmp_path / "ds", "--set", "shard.rows=3")
        assert outcomes(dataset) == {**broken, "train-0.parquet#2": ("failed", "empty"), "cut.parquet#2": ("failed", "empty")}
    assert len(rows(dataset, "images")) == 8, "a table that was mended is read"


def test_a_list_that_breaks_off_in_a_folder_gives_what_it_had(tmp_path: Path, server: WebServer) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    lines = "url,caption\n" + "".join(f"{server.url('/good.png')}?{i},{random.Random(i).random()}\n" for i in range(40_000))
    packed = gzip.compress(lines.encode())
    (folder / "cut.csv.gz").write_bytes(packed[:len(packed) // 2])
    source = Source(str(folder), tables_too=True, lists=True)
    list(source.items())
    options = TableOptions(columns=Columns(), wanted=Wanted(), limits=ShardLimits(), expected_bytes=1 << 20)
    found = pa.concat_tables([piece.rows for piece in pieces(Dataset(str(tmp_path / "ds")), source, "lists", options)])
    assert found.num_rows > 10_000
    assert [row["position"] for row in found.to_pylist() if row["problem"]] == ["cut.csv.gz"]
    assert len(set(found["source_id"].to_pylist())) == found.num_rows


def test_shards_of_pictures_in_parquet_are_cut_by_what_they_hold(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [random.Random(i).randbytes(30_000) for i in range(20)]}), tmp_path / "big.parquet",
                   compression="none")
    run("--input", tmp_path / "big.parquet", "--output", tmp_path / "ds", "--set", "shard.size_bytes=100000")
    assert {ref.rows for ref in Dataset(str(tmp_path / "ds")).snapshot("inputs").shards.values()} == {3, 2}


def test_the_outputs_of_img2dataset(server: WebServer, pictures: list[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    members = []
    for i, data in enumerate(pictures[:2]):
        meta = {"url": f"http://h/{i}.png", "caption": f"c{i}", "license": "CC0", "status": "success"}
        members += [(f"{i:09d}.jpg", data), (f"{i:09d}.txt", f"c{i}".encode()), (f"{i:09d}.json", json.dumps(meta).encode())]
    tar_file(folder / "00000.tar", members)
    parquet(folder / "00000.parquet", url=["http://h/0.png", "http://h/1.png", server.url("/good.png?late")], key=["0", "1", "2"],
            status=["success", "success", "failed_to_download"], error_message=[None, None, "timed out"], caption=["c0", "c1", "c2"])
    (folder / "00000_stats.json").write_text("{}")
    run("--input", folder, "--output", tmp_path / "ds", *WEB)
    dataset = Dataset(str(tmp_path / "ds"))
    assert [(row["bytes"], row["source_url"]) for row in rows(dataset, "images")] == \
        [(pictures[0], "http://h/0.png"), (pictures[1], "http://h/1.png")]
    assert outcomes(dataset) == {"00000.parquet#2": ("failed", "failed_upstream")}
    run("--input", folder, "--output", tmp_path / "ds", *WEB, "--set", "retry_failed=true")
    assert [row["bytes"] for row in rows(dataset, "images")][2] == server.picture, "what img2dataset failed to fetch, we ask for ourselves"


def test_the_other_outputs_of_img2dataset(server: WebServer, pictures: list[bytes], tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    """Written as files, what is said stands in the Parquet beside the folder; written as Parquet, a failed row has no bytes."""
    (tmp_path / "out/00000").mkdir(parents=True)
    (tmp_path / "out/00000/000000000.jpg").write_bytes(pictures[0])
    (tmp_path / "out/00000/000000000.json").write_text("{}")
    told = {"url": ["http://h/0.png", server.url("/good.png?late2")], "key": ["000000000", "000000001"], "caption": ["c0", "c1"],
            "status": ["success", "failed_to_download"], "error_message": [None, "timed out"], "license": ["CC0", "CC0"]}
    parquet(tmp_path / "out/00000.parquet", **told)
    parquet(tmp_path / "out/00001.parquet", jpg=[pictures[1], None], **told)
    command = ("--input", tmp_path / "out", "--output", tmp_path / "ds")
    run(*command)
    dataset = Dataset(str(tmp_path / "ds"))
    assert [(row["caption_source"], row["licence"], row["source_url"]) for row in rows(dataset, "inputs")[:1]] == [("c0", "CC0", "http://h/0.png")]
    run(*command, "--set", "retry_failed=true", expect=2)
    assert "web.contact" in capsys.readouterr().err, "a retry asks the web, and nobody does without a name"
    run(*command, *WEB, "--set", "retry_failed=true")
    assert [row["bytes"] for row in rows(dataset, "images")] == [*pictures[:2], server.picture, server.picture]


# recipes of public sources, on small files of the same layout

def small(name: str, folder: Path, server: WebServer, pictures: list[bytes]) -> Path:
    url, big = server.url("/good.png?a"), [2000, 2000, 600]
    urls = [url, server.url("/good.png?b"), server.url("/good.png?c")]
    mark, by = "https://creativecommons.org/publicdomain/mark/1.0/", "http://creativecommons.org/licenses/by/2.0/"
    if name == "pd_extended":
        return parquet(folder / "part.parquet", id=["1", "2", "3"], source_id=["1"] * 3, caption=["c"] * 3,
                       image=[{"bytes": data, "path": "x.png"} for data in pictures[:3]], mime_type=["image/png"] * 3,
                       aesthetic_score=[6] * 3, width=big, height=big)
    if name == "pd12m":
        return parquet(folder / "metadata.parquet", id=["1", "2", "3"], url=urls, caption=["c"] * 3, width=big, height=big,
                       mime_type=["image/png"] * 3, hash=["h"] * 3, license=[mark, "http://elsewhere/", mark], source=["s"] * 3)
    if name == "common_catalog_by":
        return parquet(folder / "part.parquet", jpg=pictures[:3], blip2_caption=["c"] * 3, caption=["x"] * 3,
                       licensename=["Attribution"] * 3,
                       licenseurl=[by, "http://other/", by],
                       width=big, height=big, unickname=["Ada"] * 3, pageurl=["http://p"] * 3, key=["1"] * 3, status=["success"] * 3,
                       error_message=[None] * 3)
    if name == "laion_hd":
        return parquet(folder / "laion.parquet", URL=urls, TEXT=["c"] * 3, WIDTH=big, HEIGHT=big, similarity=[0.3] * 3)
    if name == "unsplash_lite":
        lines = ["photo_id\tphoto_url\tphoto_image_url\tphoto_width\tphoto_height\tphoto_description\tphotographer_username"]
        lines += [f"{i}\thttp://p/{i}\t{one}\t{side}\t{side}\tc\tAda" for i, (one, side) in enumerate(zip(urls, big))]
        (folder / "photos.tsv000").write_text("\n".join(lines) + "\n")
        return folder / "photos.tsv000"
    told = {str(i): {"metadata": {"photo_url": "http://f", "author": "Ada", "license": licence, "license_url": "http://l"},
                     "in_the_wild": {"file_path": f"in-the-wild-images/0000{i}.png"}}
            for i, licence in enumerate(["Public Domain Mark", "Attribution-NonCommercial License", "Attribution License"])}
    (folder / "ffhq-dataset-v2.json").write_text(json.dumps(told))
    for i in range(3):
        (folder / f"0000{i}.png").write_bytes(pictures[i])
    return folder


@pytest.mark.parametrize(("name", "taken"), [("pd12m", 1), ("pd_extended", 2), ("common_catalog_by", 1), ("laion_hd", 2),
                                             ("unsplash_lite", 2), ("ffhq", 2)])
def test_recipes_of_public_sources(name: str, taken: int, server: WebServer, pictures: list[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    config: IngestConfig = RECIPES[name]()
    assert config.expected_rows
    assert config.source_name
    run("--recipe", name, "--input", small(name, folder, server, pictures), "--output", tmp_path / "ds", *WEB)
    dataset = Dataset(str(tmp_path / "ds"))
    assert len(rows(dataset, "images")) == taken
    assert {reason for status, reason in outcomes(dataset).values() if status == "rejected"} <= {"licence", "told_too_small"}
    assert not [one for one in outcomes(dataset).values() if one[0] == "failed"]
    if name not in ("laion_hd", "pd_extended"):
        assert all(row["attribution"] == "Ada" or row["licence_url"] for row in rows(dataset, "images"))
