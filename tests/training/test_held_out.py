"""What training measures on held-out faces is what an evaluation would measure on the same pairs."""

import pytest
import torch
from running import TEST, Trained

import pipeline
from pipeline.data.loading.loader import FaceImages
from pipeline.measures.effects import flips, separation
from pipeline.training.held_out import fusion_measures


@pytest.mark.parametrize("at_once", [TEST, 3])
def test_measures_are_means_over_pairs_whatever_the_batch(trained: Trained, at_once: int) -> None:
    bundle = pipeline.load_bundle(trained.bundle)
    images = FaceImages(bundle.config.shards_dir / "test", bundle.config.data).load(range(TEST))
    perceptual = bundle.perceptual()
    before = torch.get_rng_state()
    measures, effects = fusion_measures(bundle, perceptual, images, at_once)
    assert torch.equal(torch.get_rng_state(), before), "training draws the same numbers after it"

    others = torch.stack([images[number - 1] for number in range(TEST)])
    z, z_b = bundle.encode(images), bundle.encode(others)
    back, back_b, between = bundle.generate(z), bundle.generate(z_b), bundle.fuse(images, others, 0.5)
    blend = (back + back_b) / 2
    away, apart = (x.square().mean(dim=(1, 2, 3)).sqrt() for x in (between - blend, back - back_b))
    ghost = 1 - away / (apart / 2)
    assert measures["fusion/half_way_ghost"] == pytest.approx(float(ghost.mean()), rel=1e-3, abs=1e-4)
    assert measures["held_out/L1"] == pytest.approx(float((back - images).abs().mean()), rel=1e-4)
    assert -1 <= measures["held_out/SSIM"] <= 1 and measures["held_out/sharpness"] > 0

    kept = separation(effects.double().square().numpy())
    assert measures["fusion/own_share"] == pytest.approx(float(kept["own_share"]))
    assert measures["fusion/leakage"] == pytest.approx(float(kept["leakage"]))
    if at_once == TEST:
        moved, whole = flips(bundle.fuse, perceptual, z, z_b, bundle.elements)
        torch.testing.assert_close(effects, (moved.mean(0) / whole.mean(0)).sqrt(), rtol=1e-4, atol=1e-6)
