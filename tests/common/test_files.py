"""Files are whole or not there."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from running import file_size_limit, listing

from pipeline.common import files


def test_replacing_writes_the_file_with_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with files.replacing(tmp_path / "new" / "picture.png") as temporary:
            assert temporary.parent == tmp_path / "new" and temporary.suffix == ".png"
            assert temporary.name.startswith(".") and not (tmp_path / "new" / "picture.png").exists()
            temporary.write_bytes(b"whole")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "picture.png").read_bytes() == b"whole"
    assert (tmp_path / "new" / "picture.png").stat().st_mode & 0o777 == 0o640
    assert listing(tmp_path) == {"new", "new/picture.png"}


def test_a_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut leaves an empty file of that name. Then the folder, or the name itself may be lost."""
    path, flushed, fsync = tmp_path / "file.txt", list[tuple[int, bool]](), os.fsync

    def watch(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_ino, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    files.write_text(path, "whole")
    assert flushed == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "file.txt")
    files.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "there" / "file.txt").read_text() == "new"


@pytest.mark.parametrize("path", ["", ".", "/", "pipe"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(OSError, match="not a file" if path == "pipe" else "Is a directory"):
        files.write_text(Path(path), "new")
    assert Path("pipe").is_fifo() and listing(tmp_path) == {"pipe"}


@pytest.mark.parametrize("stop", [OSError("disk"), KeyboardInterrupt()])
def test_whatever_goes_wrong_leaves_what_was_there(tmp_path: Path, stop: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert path.read_text() == "old" and listing(tmp_path) == {"file.txt"}


def test_no_room_leaves_what_was_there(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file.txt", "old")
    with file_size_limit(1000), pytest.raises(OSError, match=r"too large: .*file\.txt"):
        files.write_text(tmp_path / "file.txt", "x" * 5000)
    assert (tmp_path / "file.txt").read_text() == "old" and listing(tmp_path) == {"file.txt"}


def test_json_is_sorted_and_refuses_what_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    files.write_json(path, {"b": 1, "a": [0.5, "ü"]})
    assert json.loads(path.read_text()) == {"b": 1, "a": [0.5, "ü"]}
    assert path.read_text().index('"a"') < path.read_text().index('"b"') and path.read_text().endswith("}\n")
    before = path.read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert path.read_text() == before and listing(tmp_path) == {"values.json"}


def test_sha256(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_folder_is_replaced_only_if_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    for content in ("old", "new"):
        with files.replacing_folder(path) as temporary:
            (temporary / "file").write_text(content)
    assert (path / "file").read_text() == "new" and listing(tmp_path) == {"new", "new/folder", "new/folder/file"}

    def refuse(old: Path) -> None:
        assert (old / "file").read_text() == "new"
        raise ValueError("it must stay")

    with pytest.raises(ValueError, match="it must stay"), files.replacing_folder(path, refuse) as temporary:
        (temporary / "file").write_text("newest")
    assert (path / "file").read_text() == "new" and listing(tmp_path) == {"new", "new/folder", "new/folder/file"}


def test_folders_that_were_made_for_nothing_are_taken_away(tmp_path: Path) -> None:
    below = tmp_path / "mine" / "a" / "b"
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), files.replacing(below / "file.txt"):
        raise KeyboardInterrupt
    assert listing(tmp_path) == {"mine"}

    def keep_one() -> None:
        with files.making_folder(below):
            (tmp_path / "mine" / "a" / "kept").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_one()
    assert listing(tmp_path) == {"mine", "mine/a", "mine/a/kept"}


def test_a_loop_of_links_stays(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        files.write_text(tmp_path / "loop", "text")
    assert (tmp_path / "loop").is_symlink() and listing(tmp_path) == {"loop"}


NOT_JSON = {
    "half": (b"{", "Expecting"),
    "empty": (b"", "Expecting"),
    "not text": (b"\xff\xfe\xff", "decode"),
    "half a character": (b'["\\ud800"]', "surrogates not allowed"),
    "deep": (b"[" * 100_000, "nested deeper than 32"),
    "deeper than ours": (b"[" * 40 + b"]" * 40, "nested deeper than 32"),
    "digits": (b"9" * 400, "a number of 400 digits"),
    "no end": (b"[1e999]", "1e999 is not a finite number"),
    "no number": (b"[NaN]", "NaN is not a finite number"),
    "a name twice": (b'{"a": 1, "a": 2}', "'a' is there twice"),
}


@pytest.mark.parametrize("kind", NOT_JSON)
def test_json_that_is_none_is_a_value_error(tmp_path: Path, kind: str) -> None:
    content, message = NOT_JSON[kind]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.read_json(tmp_path / "a.json")


def test_json_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as stream:
        stream.truncate(files.MOST_JSON + 1)
    with pytest.raises(OSError, match="more than 16,777,216 bytes"):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    for read in (files.read_json, files.sha256, files.open_file):
        with pytest.raises(OSError, match=f"(not a file|Is a directory): .*{kind}"):
            read(path)
