"""Lists of pairs that nobody wrote by hand: a line for the user, and no other error."""

from pathlib import Path

import pytest
from hypothesis import strategies as st
from trying import FEW_AND_MANY, cuts, flips, many

from pipeline.common.errors import UserError
from pipeline.inference.pair_list import read_pairs

GOOD = b'a,b,lambda\na.jpg,"b.jpg",0.5\r\nb.jpg,a.jpg,"1,0,0,0,1"\na.jpg,b.jpg,\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    return tmp_path / "pairs.csv"


def check(path: Path, content: bytes) -> None:
    """It is read, and then every photograph is there; or it is refused with its name."""
    path.write_bytes(content)
    pairs, refusal = [], ""
    try:
        pairs = read_pairs(path, 5)
    except UserError as error:
        refusal = str(error)
    assert pairs or refusal.startswith(str(path))
    assert all(pair.a.is_file() and pair.b.is_file() for pair in pairs)
    assert len({pair.name for pair in pairs}) == len(pairs) and not any("/" in pair.name for pair in pairs)


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_damage_and_nonsense(path: Path, count: int) -> None:
    check(path, GOOD)
    for content in (*cuts(GOOD, len(GOOD)), *flips(GOOD, count)):
        check(path, content)
    pieces = st.sampled_from(["a", "b", "lambda", ",", '"', "\n", "\r", "\0", ";", "a.jpg", "..", "/", "1e999", "é"])
    texts = st.lists(pieces, max_size=30).map("".join)
    many(st.binary(max_size=60), count, lambda content: check(path, content))
    many(texts, count, lambda text: check(path, text.encode()))
    many(texts, count, lambda text: check(path, b"a,b,lambda\n" + text.encode()))
