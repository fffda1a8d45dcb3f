"""Paths: of no file, in circles, with line breaks and bytes that are no text."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Result
from trying import answered, photograph, refused

NOT_WRITABLE: dict[str, Callable[[Path], Path]] = {}
BROKEN = "a\nlatentfuse: all is well\r\x1b[2J\u2028.jpg"
UNDECODABLE = os.fsdecode(b"a\xff.jpg")


def not_writable(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    NOT_WRITABLE[make.__name__.replace("_", " ")] = make
    return make


@not_writable
def a_loop_of_links(root: Path) -> Path:
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    return root / "one"


@not_writable
def a_link_to_itself(root: Path) -> Path:
    (root / "x.png").symlink_to("x.png")
    return root / "x.png"


@not_writable
def below_a_loop_of_links(root: Path) -> Path:
    return a_loop_of_links(root) / "x.png"


@not_writable
def below_a_file(root: Path) -> Path:
    (root / "file").write_text("text")
    return root / "file" / "x.png"


@not_writable
def a_folder(root: Path) -> Path:
    (root / "x.png").mkdir()
    return root / "x.png"


@not_writable
def a_named_pipe(root: Path) -> Path:
    os.mkfifo(root / "x.png")
    return root / "x.png"


@not_writable
def a_device(root: Path) -> Path:
    return Path("/dev/full")


@not_writable
def a_long_name(root: Path) -> Path:
    return root / ("x" * 300 + ".png")


@not_writable
def a_long_path(root: Path) -> Path:
    return root.joinpath(*["x" * 200] * 30) / "x.png"


@not_writable
def no_folder_of_processes(root: Path) -> Path:
    return Path("/proc/nothing/x.png")


@pytest.mark.parametrize("where", NOT_WRITABLE)
def test_what_cannot_be_written(untrained: Path, good: Path, tmp_path: Path, where: str) -> None:
    out = NOT_WRITABLE[where](tmp_path)
    refused(tmp_path, "fuse", untrained, good, good, "-o", out)
    refused(tmp_path, "features", good, "--weights", "random", "--arch", "vgg16", "-o", out)


def everything_that_reads(untrained: Path, root: Path, path: Path) -> list[Result]:
    """Each command with a path that is not what it wants."""
    good = root / "good.jpg"
    good.write_bytes(photograph())
    fuse = ("fuse", untrained)
    commands: list[tuple[object, ...]] = [
        (*fuse, path, good),
        (*fuse, good, path),
        ("fuse", path, good, good),
        (*fuse, good, good, "--mask", path),
        (*fuse, good, good, "--region", "eyes", "--landmarks", path),
        ("features", path, "--weights", "random"),
        ("features", good, "--weights", path),
        ("compare", path, path),
        ("verify", path),
        ("stage", path, root / "staged"),
        ("shard", path, root / "out"),
        ("shard", "--index-only", path),
        ("train", "--config", path),
        ("evaluate", untrained, path, "--out", root / "evaluation"),
        ("evaluate", path, path, "--out", root / "evaluation"),
        ("export", path, root / "bundle"),
    ]
    return [refused(root, *each) for each in commands]


@pytest.mark.parametrize("name", ["nothing", BROKEN, UNDECODABLE, "x" * 300])
def test_what_is_not_there(untrained: Path, tmp_path: Path, name: str) -> None:
    everything_that_reads(untrained, tmp_path, tmp_path / name)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "an empty folder": Path.mkdir,
    "a loop of links": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: path.write_bytes(b""),
    "other bytes": lambda path: path.write_bytes(bytes(range(256)) * 10),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["input", pytest.param(BROKEN, marks=pytest.mark.faults)])
def test_what_is_no_file(untrained: Path, tmp_path: Path, kind: str, name: str) -> None:
    NO_FILES[kind](tmp_path / name)
    everything_that_reads(untrained, tmp_path, tmp_path / name)


@pytest.mark.parametrize("name", [BROKEN, UNDECODABLE])
def test_odd_names_are_names(untrained: Path, tmp_path: Path, name: str) -> None:
    """A photograph and a picture may have them."""
    photo, out = tmp_path / name, tmp_path / f"out-{name}.png"
    photo.write_bytes(photograph())
    assert answered(tmp_path, "fuse", untrained, photo, photo, "-o", out).code == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "value", ["1.0000001", "-1e-30", "nan", "inf", "1e400", "9" * 400, "0x1", "", ",", "1," * 5000]
)
def test_lambdas(untrained: Path, good: Path, tmp_path: Path, value: str) -> None:
    result = refused(tmp_path, "fuse", untrained, good, good, f"--lambda={value}", "-o", tmp_path / "fused.png")
    assert value[:9] in result.errors or value in ("1e400", "9" * 400, "1," * 5000)
