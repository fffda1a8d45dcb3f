"""The runtime that the page asks a CDN for is, byte for byte, the one that these tests run with."""

import pytest
from browsing import RUNTIME

from pipeline.inference import web

pytestmark = pytest.mark.web


def test_hashes_are_those_of_the_package() -> None:
    if not (RUNTIME / "dist").is_dir():
        pytest.skip("needs onnxruntime-web: make test-web")
    for name, integrity in web.RUNTIME_FILES.items():
        assert web.integrity((RUNTIME / "dist" / name).read_bytes()) == integrity, name
