"""Lists of pairs: what they mean, and one line with the place of a mistake."""

from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.inference import pair_list
from pipeline.inference.pair_list import read_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With photographs a.jpg, b.jpg and, below, `sub/c d.jpg`."""
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "b.jpg", "sub/c d.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def listed(folder: Path, content: str | bytes) -> Path:
    path = folder / "pairs.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_paths_are_relative_to_the_list(folder: Path) -> None:
    content = f'A, B\r\na.jpg,sub/c d.jpg\r\n\r\n"{folder / "b.jpg"}", a.jpg\r\n'
    first, second = read_pairs(listed(folder, b"\xef\xbb\xbf" + content.encode()), 5)
    assert first[1:] == (folder / "a.jpg", folder / "sub/c d.jpg", None, "0001-a-c_d")
    assert second[1:] == (folder / "b.jpg", folder / "a.jpg", None, "0002-b-a")
    assert (first.where, second.where) == (f"{folder / 'pairs.csv'}:2", f"{folder / 'pairs.csv'}:4")


def test_each_line_may_have_its_lambda(folder: Path) -> None:
    pairs = read_pairs(listed(folder, 'a,b,lambda\na.jpg,b.jpg,0.3\na.jpg,b.jpg,"1, 0.5,0"\na.jpg,b.jpg,\n'), 3)
    assert [pair.lambda_ for pair in pairs] == [0.3, [1, 0.5, 0], None]


def test_names_are_short_and_of_plain_characters(folder: Path) -> None:
    odd = folder / f"{'日' * 60} ?*\n.jpg"
    odd.touch()
    (pair,) = read_pairs(listed(folder, f'a,b\n"{odd.name}",sub/../sub/c d.jpg\n'), 5)
    assert pair.a == odd and pair.name == f"0001-{'日' * 24}-c_d"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ":1: a first line `a,b` or `a,b,lambda` is wanted, not ''"),
        ("a.jpg,b.jpg\n", ":1: a first line"),
        ("a;b\na.jpg;b.jpg\n", ":1: a first line"),
        ("a,b\n", ": holds no pair"),
        ("a,b\na.jpg,b.jpg\na.jpg\n", ":3: 2 values are wanted"),
        ("a,b\na.jpg,\n", ":2: b: .*: no such file"),
        ("a,b\nno.jpg,b.jpg\n", ":2: a: .*no.jpg: no such file"),
        ("a,b\nsub,b.jpg\n", ":2: a: .*sub: no such file"),
        ("a,b\na\0.jpg,b.jpg\n", ":2: a: "),
        (f"a,b\n{'x' * 5000},b.jpg\n", ":2: a: .{200}: no such file"),
        ("a,b\n../../../../../../etc,b.jpg\n", ":2: a: "),
        ("a,b,lambda\na.jpg,b.jpg,1,0,0\n", ":2: 3 values are wanted .*; put several lambdas in quotes"),
        ("a,b,lambda\na.jpg,b.jpg,half\n", ":2: lambda half: expected numbers"),
        ("a,b,lambda\na.jpg,b.jpg,2\n", ":2: lambda: 2 is outside"),
        ("a,b,lambda\na.jpg,b.jpg,nan\n", ":2: lambda: nan is outside"),
        ('a,b,lambda\na.jpg,b.jpg,"1,0"\n', ":2: lambda: 2 values: this bundle takes 1 or 5"),
        ('a,b\na.jpg,"b.jpg\n', ":2: not CSV"),
        ('a,b\n"a"x,b.jpg\n', ":2: not CSV"),
        (f"a,b\n{'x' * 200_000},b.jpg\n", ":2: not CSV: field larger"),
        (b"a,b\n\xff.jpg,b.jpg\n", ": not a text file in UTF-8"),
        (b"\xff\xfea\0,\0b\0", ": not a text file in UTF-8"),
    ],
    ids=range(21),
)
def test_a_mistake_is_named_with_its_line(folder: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=rf"pairs\.csv{message}"):
        read_pairs(listed(folder, content), 5)


def test_lists_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = listed(folder, "a,b\n" + "a.jpg,b.jpg\n" * 4)
    monkeypatch.setattr(pair_list, "MOST_PAIRS", 3)
    with pytest.raises(UserError, match=r"pairs\.csv:5: more than 3 pairs"):
        read_pairs(path, 5)
    monkeypatch.setattr(pair_list, "MOST_BYTES", 20)
    with pytest.raises(UserError, match=r"pairs\.csv: more than 20 bytes"):
        read_pairs(path, 5)
    for other in (folder, folder / "none.csv"):
        with pytest.raises(UserError, match=str(other)):
            read_pairs(other, 5)
