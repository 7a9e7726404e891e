"""Listing a source: order, names, provenance, tars whole and broken."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from infra.storage import StorageError
from pipelines.provenance import parse_csv, provenance_of
from pipelines.sources import Source, to_key, to_position

ODD_NAMES = [b"na\xc3\xafve \xe2\x98\x83.jpg", b"latin1 caf\xe9.jpg", b"new\nline.jpg", b"bytes:a.jpg", b"\xe2\x80\xae reversed.jpg",
             b"-rf.jpg"]


def positions(url: str | Path) -> list[str]:
    return [item.position for item in Source(str(url)).items()]


def put(folder: Path, *names: str | bytes, data: bytes = b"x") -> None:
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(data)


def tar_file(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_folder_is_listed_recursively_in_the_order_of_the_keys(tmp_path: Path) -> None:
    put(tmp_path, "b.JPG", "a/z.png", "a-b/c.webp", "a/deep/er/q.tiff", "notes.txt", "README")
    source = Source(str(tmp_path))
    found = [item.position for item in source.items()]
    assert found == sorted(found) == ["a-b/c.webp", "a/deep/er/q.tiff", "a/z.png", "b.JPG"]
    assert source.skipped == {".txt": 1, "no suffix": 1}


def test_odd_names_survive_a_round_trip_as_text(tmp_path: Path) -> None:
    put(tmp_path, *ODD_NAMES)
    found = positions(tmp_path)
    assert len(set(found)) == len(ODD_NAMES)
    assert sorted(os.fsencode(to_key(one)) for one in found) == sorted(ODD_NAMES)
    for one in found:
        one.encode("utf-8")  # a table can hold it


@pytest.mark.parametrize("key", ["a!b.tar", "bytes:x", "\udcff.tar", "plain.tar"])
def test_the_key_of_a_tar_is_told_apart_from_its_member(key: str) -> None:
    position = f"{to_position(key, tar=True)}!member!1.jpg"
    assert to_key(position.split("!", 1)[0]) == key


def test_links_and_pipes(tmp_path: Path) -> None:
    put(tmp_path / "in", "a.jpg")
    put(tmp_path / "out", "secret.jpg")
    (tmp_path / "in/linked_folder").symlink_to(tmp_path / "out")
    (tmp_path / "in/loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "in/nowhere.jpg").symlink_to("gone.jpg")
    os.mkfifo(tmp_path / "in/pipe.jpg")
    source = Source(str(tmp_path / "in"))
    assert [item.position for item in source.items()] == ["a.jpg", "loop.jpg", "nowhere.jpg"]  # a pipe is no file
    assert source.skipped == {"linked folder": 1}, "it is not entered, and that is told"


def test_an_address_that_is_missing_or_a_file_is_told(tmp_path: Path) -> None:
    put(tmp_path, "file.pdf")
    for url in (tmp_path / "gone", tmp_path / "file.pdf"):
        with pytest.raises(StorageError, match=r"folder"):
            positions(url)


def test_provenance_from_a_csv_in_the_folder_beside_it_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder, "a.jpg", "b/c.jpg")
    (tmp_path / "photos.csv").write_text("file,license,author\nb/c.jpg,CC0-1.0,Ada\n")
    beside = {item.position: item.provenance for item in Source(str(folder)).items()}
    assert (beside["b/c.jpg"].licence, beside["b/c.jpg"].attribution, beside["a.jpg"].licence) == ("CC0-1.0", "Ada", "")
    (folder / "photos.csv").write_text("file,licence,caption\na.jpg,CC-BY-4.0,a cat\n")
    inside = {item.position: item.provenance for item in Source(str(folder)).items()}
    assert (inside["a.jpg"].licence, inside["a.jpg"].caption_source, inside["b/c.jpg"].licence) == ("CC-BY-4.0", "a cat", "")
    (folder / "mine.csv").write_text("file,licence\na.jpg,mine\n")
    assert next(iter(Source(str(folder), "mine.csv").items())).provenance.licence == "mine"
    with pytest.raises(StorageError, match=r"other\.csv does not exist"):
        list(Source(str(folder), "other.csv").items())


def test_a_list_of_urls_is_no_sidecar_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder, "a.jpg")
    for csv in (tmp_path / "photos.csv", folder / "photos.csv"):
        csv.write_text("url,caption\nhttp://h/a.jpg,x\n")
    assert [item.position for item in Source(str(folder)).items()] == ["a.jpg"]
    for url in (tmp_path / "photos.csv", folder / "photos.csv", folder):
        source = Source(str(url), tables_too=True, lists=True)
        list(source.items())
        assert source.tables == ["photos.csv"]
    (folder / "photos.csv").write_text("name,licence\na.jpg,CC0\n")
    with pytest.raises(ValueError, match="expected one named 'file'"):
        positions(folder)


def test_a_csv_that_cannot_be_used_is_told() -> None:
    with pytest.raises(ValueError, match="expected one named 'file'"):
        parse_csv(b"name,licence\na.jpg,CC0\n", "photos.csv")
    with pytest.raises(ValueError, match="UTF-8"):
        parse_csv(b"file,author\na.jpg,Ren\xe9\n", "photos.csv")
    assert parse_csv(b"", "photos.csv") == {}
    assert parse_csv(b"\xef\xbb\xbffile;licence;author\r\na.jpg;CC0;A, B\r\n", "photos.csv")["a.jpg"].attribution == "A, B"
    assert parse_csv(b"file,licence\na.jpg\nb.jpg,CC0,too,many\n", "photos.csv")["b.jpg"].licence == "CC0"


def test_synonyms_and_values_that_are_no_text() -> None:
    told = provenance_of({"url": "http://x", "license": 4, "caption": None, "text": "a dog"})
    assert (told.source_url, told.licence, told.caption_source) == ("http://x", "4", "a dog")
    assert provenance_of({"url": "http://u:p@h/a.jpg?token=abc"}).source_url == "http://h/a.jpg?token=REDACTED"


def test_members_of_a_tar_with_what_is_said_of_them(tmp_path: Path) -> None:
    tar_file(tmp_path / "b.tar", [("x/1.jpg", b"one"), ("x/1.txt", b" a hill \n"), ("x/1.json", b'{"license": "CC0-1.0"}'),
                                  ("x/2.jpg", b"two"), ("x/2.json", b"{broken"), ("x/3.cls", b"7")])
    source = Source(str(tmp_path))
    one, two = list(source.items())
    assert (one.position, one.size_bytes) == ("b.tar!x/1.jpg", 3)
    assert (one.provenance.caption_source, one.provenance.licence) == ("a hill", "CC0-1.0")
    assert (two.position, two.provenance.licence) == ("b.tar!x/2.jpg", "")
    assert one.offset is not None
    assert (tmp_path / "b.tar").read_bytes()[one.offset:one.offset + 3] == b"one"
    assert source.skipped == {".cls": 1}
    single = list(Source(str(tmp_path / "b.tar")).items())
    assert [item.position for item in single] == ["b.tar!x/1.jpg", "b.tar!x/2.jpg"]


def test_a_record_that_was_cut_or_made_to_harm_stops_no_listing(tmp_path: Path) -> None:
    records = [b'{"caption": "cut \\ud83d", "url": "http://h/\\ud83d\\ude00"}', b"[" * 200_000]
    records += [b'{"caption": ' + b"[" * depth + b"]" * depth + b"}" for depth in range(900, 1000)]
    members = [member for i, data in enumerate(records) for member in ((f"{i}.jpg", b"x"), (f"{i}.json", data))]
    tar_file(tmp_path / "a.tar", members)
    told = [item.provenance for item in Source(str(tmp_path)).items()]
    assert len(told) == len(records)
    assert [(one.caption_source, one.source_url) for one in told[:2]] == [("cut \ufffd", "http://h/\U0001f600"), (None, "")]


def test_a_name_that_a_tar_holds_twice_is_two_items(tmp_path: Path) -> None:
    tar_file(tmp_path / "t.tar", [("1.jpg", b"one"), ("1.jpg", b"two")])
    first, second = positions(tmp_path)
    assert first == "t.tar!1.jpg"
    assert second.startswith("t.tar!1.jpg@")


def test_a_tar_that_breaks_off_or_is_none_is_an_item_itself(tmp_path: Path) -> None:
    whole = tar_file(tmp_path / "cut.tar", [(f"{i}.jpg", b"x" * 2000) for i in range(4)]).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:6000])
    (tmp_path / "none.tar").write_bytes(b"no tar at all" * 100)
    found = positions(tmp_path)
    assert found[-1] == "none.tar"
    assert "cut.tar!0.jpg" in found


def test_a_tar_that_was_made_to_harm_ends(tmp_path: Path) -> None:
    """A size below zero leads back to where the header stands; numbers in extended headers may be anything."""
    whole = bytearray(tar_file(tmp_path / "back.tar", [("0.jpg", b"x" * 500), ("1.jpg", b"x")]).read_bytes())
    whole[1024 + 124:1024 + 136] = (-1024 & 256**12 - 1).to_bytes(12, "big")
    whole[1024 + 148:1024 + 156] = b" " * 8
    whole[1024 + 148:1024 + 156] = b"%06o\0 " % sum(whole[1024:1536])
    (tmp_path / "back.tar").write_bytes(whole)
    sparse = tarfile.TarInfo("2.jpg")
    sparse.pax_headers = {"GNU.sparse.size": "many"}
    with tarfile.open(tmp_path / "numbers.tar", "w") as tar:
        tar.addfile(sparse)
    found = list(Source(str(tmp_path)).items())
    assert [item.position for item in found] == ["back.tar!0.jpg", "back.tar", "numbers.tar"]
    assert [bool(item.problem) for item in found] == [False, True, True]


def test_a_tar_loses_no_member_unsaid(tmp_path: Path) -> None:
    """tarfile takes a header that it cannot read for the end: what is behind it would be lost without a word."""
    whole = tar_file(tmp_path / "a.tar", [(f"{i}.jpg", b"x" * 500) for i in range(4)]).read_bytes()
    header = 2 * 1024
    for name, data in (("cut", whole[:header]), ("damaged", whole[:header] + b"?" * 512 + whole[header + 512:]), ("joined", whole * 2)):
        (tmp_path / f"{name}.tar").write_bytes(data)
    found = list(Source(str(tmp_path)).items())
    assert [item.position for item in found if item.problem] == ["cut.tar", "damaged.tar", "joined.tar"]
    assert sum(not item.problem for item in found) == 4 + 2 + 2 + 4
    assert all(item.problem.startswith("broken_tar: ") for item in found if item.problem)
