"""A page that is open in a browser, for the tests of tests/web."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from running import wait_for
from torch import Tensor

from pipeline.inference.bundle import Bundle

RUNTIME = Path(os.environ.get("ONNXRUNTIME_WEB", "nowhere"))
"""onnxruntime-web as npm installs it."""
SIZE = 64
"""Of the images of the page's bundle."""


@dataclass
class Visit:
    """A page that is open, and all it has asked for and complained about."""

    page: Any
    address: str
    bundle: Bundle
    requests: list[Any] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def settle(self) -> None:
        """Wait until nothing is being computed."""
        self.page.wait_for_selector("main[aria-busy=false]", timeout=120_000)

    def wait_for_status(self, begin: str) -> None:
        wait_for(lambda: str(self.page.inner_text("#status")).startswith(begin), seconds=60)

    def values(self, expression: str) -> Any:
        """Of JavaScript; `page` is the page's script."""
        self.settle()
        return self.page.evaluate(f"import(location.origin + '/page.js').then((page) => {expression})")

    def input(self, name: str) -> Tensor:
        """What the encoder gets of photograph A or B: (1, 3, S, S) in [-1, 1]."""
        rgba = self.values(f"Array.from(page.pixels(page.places.{name}).data)")
        return torch.tensor(rgba).reshape(SIZE, SIZE, 4)[..., :3].permute(2, 0, 1)[None] / 127.5 - 1

    def shown(self, canvas: str) -> Tensor:
        """(3, H, W), levels of 255."""
        self.settle()
        width, height, rgba = self.page.evaluate(
            f"(({{ width, height }}, context) => [width, height, Array.from(context.getImageData(0, 0, width, height)"
            f".data)])(document.querySelector('{canvas}'), document.querySelector('{canvas}').getContext('2d'))"
        )
        return torch.tensor(rgba).reshape(height, width, 4)[..., :3].permute(2, 0, 1).float()

    def move(self, slider: int, lambda_: float) -> None:
        """0 moves all elements, 1 and on one of them."""
        self.page.locator("#sliders input").nth(slider).fill(f"{1 - lambda_:.2f}")

    def place(self, name: str) -> Any:
        return self.page.locator(".place").nth("AB".index(name))
