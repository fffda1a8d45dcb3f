"""What a fused face is compared with, and how well mixes are told from faces."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation import detectability, mixes
from pipeline.inference.landmarks import Points

SIDE = 32
POINTS: Points = {
    "lefteye": (10, 12),
    "righteye": (21, 12),
    "nose": (16, 18),
    "leftmouth": (11, 24),
    "rightmouth": (20, 24),
}


def spot(x: float, y: float) -> Tensor:
    """A soft white spot on black, (3, SIDE, SIDE)."""
    rows, columns = torch.meshgrid(torch.arange(SIDE) - y, torch.arange(SIDE) - x, indexing="ij")
    return (2 * torch.exp(-(rows.square() + columns.square()) / 8) - 1).expand(3, -1, -1)


def test_a_morph_brings_landmarks_together() -> None:
    """A spot on A's nose and one on B's become one spot half-way between them."""
    moved: Points = POINTS | {"nose": (20, 22)}
    fused = mixes.morph(spot(16, 18), spot(20, 22), POINTS, moved)
    top = int(fused[0].argmax())
    assert (top % SIDE, top // SIDE) == (18, 20) and fused.max() > 0.8
    exposure = (spot(16, 18) + spot(20, 22)) / 2
    assert exposure.max() < 0.5


def test_a_morph_of_faces_that_agree_is_their_mean() -> None:
    a, b = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(mixes.morph(a, b, POINTS, POINTS), (a + b) / 2, atol=1e-4)


@pytest.mark.parametrize("wrong", [(-400.0, 12.0), (21.0, 12.0)], ids=["far outside", "both eyes on one point"])
def test_a_morph_bears_wrong_landmarks(wrong: tuple[float, float]) -> None:
    a, b = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fused = mixes.morph(a, b, POINTS | {"lefteye": wrong}, POINTS)
    assert torch.isfinite(fused).all() and fused.abs().max() <= 1


def pictures(count: int, seed: int, grey: int) -> Tensor:
    noise = torch.randint(0, 100, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    return (noise + grey).to(torch.uint8)


def test_what_differs_is_detected_and_what_does_not_is_not() -> None:
    cpu = torch.device("cpu")
    faces = pictures(96, 0, 60), pictures(60, 1, 60)
    others = pictures(96, 2, 60), pictures(60, 3, 60)
    alike = np.mean([detectability.told_apart(faces, others, seed, cpu) for seed in (0, 1)], axis=0)
    darker = detectability.told_apart(faces, (pictures(96, 4, 0), pictures(60, 5, 0)), 0, cpu)
    assert alike.shape == (60,) and 0.3 < alike.mean() < 0.7
    assert darker.mean() > 0.99 and darker.max() <= 1


def test_the_classifier_leaves_the_generator_alone_and_repeats() -> None:
    faces = pictures(24, 0, 60), pictures(16, 1, 60)
    mixed = pictures(24, 2, 50), pictures(16, 3, 50)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, other = (detectability.told_apart(faces, mixed, 1, torch.device("cpu")) for _ in range(2))
    assert np.array_equal(one, other) and torch.equal(before, torch.random.get_rng_state())
