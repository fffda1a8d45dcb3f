"""FID and KID of features whose distance is known."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config.schema import PerceptualConfig
from pipeline.evaluation.image_pass import published_lpips
from pipeline.evaluation.realism import feature_extractor, frechet, kernel, realism
from pipeline.models.perceptual import PerceptualNetwork


def gaussian(count: int, mean: list[float], deviation: list[float], seed: int) -> Tensor:
    random = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    white: Tensor = (random - random.mean(dim=0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(random.T))).T
    return white * torch.tensor(deviation) + torch.tensor(mean)  # exactly these moments


def test_frechet_distance_of_two_gaussians() -> None:
    """|m - n|^2 + sum (s - t)^2 where the covariances are diagonal."""
    some, others = gaussian(50, [0, 1, 2], [1, 2, 3], 0), gaussian(60, [1, 1, 4], [2, 2, 1], 1)
    assert frechet(some, others) == pytest.approx((1 + 0 + 4) + (1 + 0 + 4), rel=1e-6)
    assert frechet(some, some) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_needs_more_images_than_features() -> None:
    assert math.isnan(frechet(torch.rand(20, 20), torch.rand(100, 20)))
    assert math.isfinite(frechet(torch.rand(21, 20), torch.rand(100, 20)))


def test_kernel_distance_is_unbiased_and_does_not_touch_the_generator() -> None:
    pairs = [torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    same = [kernel(some, others, seed=0)[0] for some, others in pairs]
    assert abs(sum(same) / 20) < 0.05
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    some, others = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    found = kernel(some, others + 2, seed=1)
    assert found == kernel(some, others + 2, seed=1) and found[0] > 1
    assert torch.equal(before, torch.random.get_rng_state())
    assert math.isnan(kernel(torch.rand(7, 2), torch.rand(90, 2), seed=0)[0])


def test_crowds_are_compared_with_the_training_images() -> None:
    train = gaussian(30, [0, 0], [1, 1], 0)
    crowds = {"fused": gaussian(20, [3, 0], [1, 1], 1), "floor": gaussian(20, [0, 1], [1, 1], 2)}
    found = realism(train, crowds, seed=0)
    assert found["count"] == 20 and found["features"] == 2
    assert found["FID_fused"] == pytest.approx(9) and found["FID_floor"] == pytest.approx(1)
    assert found["FID_fused_over_floor"] == pytest.approx(9, rel=1e-4)
    few = realism(train, crowds | {"fused": crowds["fused"][:2]}, seed=0)
    assert few["FID_fused"] is None and few["KID_fused"] is None and "2 images for 2 features" in few["FID_left_out"]


@torch.no_grad()
def test_features_in_their_unit_do_not_depend_on_the_scale() -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = []
    for scale, calibrated in (("oxford", True), ("unit", True), ("unit", False), ("none", True)):
        values = {"arch": "vgg16", "weights": "random", "feature_scale": scale}
        network = PerceptualNetwork(PerceptualConfig.model_validate(values))
        if calibrated:  # pre-training does not
            network.calibrate([images])
        extractor = feature_extractor(network, torch.device("cpu"))
        batches = [extractor.of_training(batch) for batch in images.split(3)]
        features, unit = torch.cat([each for each, _ in batches]), extractor.unit([each for _, each in batches])
        torch.testing.assert_close(features, extractor.features(images), rtol=1e-3, atol=1e-3)
        found.append(features / unit)
        if scale == "unit" and calibrated:
            assert unit == pytest.approx(1, rel=1e-5)
    for others in found[1:]:
        torch.testing.assert_close(found[0], others, rtol=1e-3, atol=1e-5)


def test_the_published_lpips_needs_weights_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert published_lpips(torch.device("cpu")) is None
