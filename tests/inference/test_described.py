"""What a bundle says of itself: words for its elements, and the hash by which it is known."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import ModelConfig
from pipeline.inference.described import bundle_hash, described_elements

GIVEN = [{"name": f"name {n}", "text": f"Sentence {n}."} for n in range(5)]


@pytest.mark.parametrize(
    ("given", "first"),
    [
        (GIVEN, "name 0"),
        (None, "element 1"),
        (GIVEN[:4], "element 1"),
        ([*GIVEN[:4], {"name": 5, "text": ""}], "element 1"),
        ([*GIVEN[:4], "text"], "element 1"),
        ([*GIVEN[:4], {"name": "x" * 10_000, "text": ""}], "element 1"),
    ],
)
def test_words_for_elements_come_from_the_bundle(tmp_path: Path, given: Any, first: str) -> None:
    """And are those of the structure, where it has none of the right kind."""
    (tmp_path / "config.json").write_text(json.dumps({"elements": given}))
    elements = described_elements(tmp_path, ModelConfig())
    assert len(elements) == 5
    assert elements[0].name == first


def test_words_stay_on_one_line(tmp_path: Path) -> None:
    given = [{"name": "a\nb\x1b[2J", "text": ""} for _ in range(5)]
    (tmp_path / "config.json").write_text(json.dumps({"elements": given}))
    assert described_elements(tmp_path, ModelConfig())[0].name == r"a\nb\x1b[2J"


def test_the_hash_is_what_sha256sum_says_of_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    assert bundle_hash(tmp_path) == hashlib.sha256(b"{}").hexdigest()
