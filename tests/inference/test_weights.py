"""Weights of bundles: whole, finite, and what the configuration promises."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Trained, latentfuse
from safetensors.torch import load_file, save_file

import pipeline
from pipeline.common import files
from pipeline.common.errors import UserError


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        info = json.loads((bundle / "config.json").read_text())
        change(info)
        (bundle / "config.json").write_text(json.dumps(info))

    return apply


def change(bundle: Path, apply: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other weights, and the sums of these."""
    path = bundle / "model.safetensors"
    weights = load_file(path)
    apply(weights)
    save_file(weights, path, metadata={"image_size": "32"})
    edit(lambda info: info["sha256"].update({path.name: files.sha256(path)}))(bundle)


def test_several_weights_files_load_as_one(trained: Trained, tmp_path: Path) -> None:
    assert latentfuse("export", trained.run, tmp_path / "parts", "--max-shard-size", "30KB").code == 0
    parts = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(parts) > 1 and (tmp_path / "parts" / "model.safetensors.index.json").is_file()
    whole, parted = pipeline.load_bundle(trained.bundle), pipeline.load_bundle(tmp_path / "parts")
    a, b = trained.photographs
    assert torch.equal(whole.fuse(a, b, 0.3), parted.fuse(a, b, 0.3))
    parts[0].unlink()
    with pytest.raises(UserError, match=parts[0].name):
        pipeline.load_bundle(tmp_path / "parts")


def test_the_perceptual_network_has_the_scales_of_training(trained: Trained, bundle: Path) -> None:
    change(bundle, lambda weights: weights.update({"scales.factor": torch.arange(1.0, 6.0)}))
    network = pipeline.load_bundle(bundle).perceptual()
    assert torch.equal(network.scales.factor, torch.arange(1.0, 6.0))


def cut(length: int) -> Callable[[Path], object]:
    return lambda bundle: (bundle / "model.safetensors").write_bytes(
        (bundle / "model.safetensors").read_bytes()[:length]
    )


def changed(apply: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda bundle: change(bundle, apply)


def flipped(bundle: Path) -> None:
    content = bytearray((bundle / "model.safetensors").read_bytes())
    content[-1000] ^= 1
    (bundle / "model.safetensors").write_bytes(content)


def set_sums(sums: Any) -> Callable[[Path], None]:
    return edit(lambda info: info.update(sha256=sums))


def older_of(size: int) -> Callable[[Path], None]:
    """Without sums, and its weights do not say how large the images were."""

    def apply(bundle: Path) -> None:
        save_file(load_file(bundle / "model.safetensors"), bundle / "model.safetensors")
        edit(lambda info: info.pop("sha256"))(bundle)
        edit(lambda info: info["config"]["data"].update(image_size=size))(bundle)

    return apply


def pipe(name: str) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)

    return apply


ONE = "model.encoder.body.1.1.bias"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "wider": (edit(lambda info: info["config"]["model"].update(base_channels=4)), "does not match the weights"),
    "kernel": (edit(lambda info: info["config"]["model"].update(kernel_size=5)), "does not match the weights"),
    "unknown key": (edit(lambda info: info["config"]["model"].update(width=4)), "model.width: unknown key"),
    "format": (edit(lambda info: info.update(format=99)), "format 99"),
    "no format": (edit(lambda info: info.pop("format")), "not the configuration of a bundle"),
    "list": (lambda bundle: (bundle / "config.json").write_text("[1]"), "not the configuration of a bundle"),
    "not JSON": (lambda bundle: (bundle / "config.json").write_text("{"), "not the configuration of a bundle"),
    "not text": (lambda bundle: (bundle / "config.json").write_bytes(b"\xff\xfe"), "not the configuration of a bundle"),
    "no config": (lambda bundle: (bundle / "config.json").unlink(), "No such file"),
    "no weights": (lambda bundle: (bundle / "model.safetensors").unlink(), "its weights cannot be read"),
    "cut": (cut(-1), "damaged or cut short"),
    "cut in the header": (cut(100), "damaged or cut short"),
    "empty": (cut(0), "damaged or cut short"),
    "one weight less": (changed(lambda weights: weights.pop(ONE)), f"lacks {ONE}"),
    "one weight more": (changed(lambda weights: weights.update({"another": torch.zeros(1)})), "unknown another"),
    "another shape": (changed(lambda weights: weights.update({ONE: torch.zeros(3)})), f"{ONE} is 3, not"),
    "not a number": (
        changed(lambda weights: weights[ONE].fill_(float("nan"))),
        f"its weights are not finite numbers: {ONE}",
    ),
    "infinite": (
        changed(lambda weights: weights["scales.factor"].fill_(float("inf"))),
        "not finite numbers: scales.factor",
    ),
    "flipped": (flipped, "SHA-256 is not the one in config.json"),
    "no sums": (set_sums({}), "its sha256 is not a list"),
    "sums of other files": (set_sums({"../model.safetensors": "0"}), "its sha256 is not a list"),
    "sums that are none": (set_sums([1]), "its sha256 is not a list"),
    "1,024 channels": (edit(lambda info: info["config"]["model"].update(base_channels=1024)), "does not match"),
    "4,096 px": (edit(lambda info: info["config"]["data"].update(image_size=4096)), "the weights are for 32"),
    "4,096 px, older": (older_of(4096), "data.image_size: 4096"),
    "a thousand levels": (lambda bundle: (bundle / "config.json").write_text("[" * 10**5), "not the configuration"),
    "step": (edit(lambda info: info["trained"].update(step="4")), "not the configuration of a bundle"),
    "not trained": (edit(lambda info: info.update(trained=[])), "not the configuration of a bundle"),
    "a pipe": (pipe("config.json"), "not a file"),
    "a pipe of weights": (pipe("model.safetensors"), "not a file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused_in_one_line(trained: Trained, bundle: Path, tmp_path: Path, damage: str) -> None:
    apply, message = DAMAGES[damage]
    apply(bundle)
    result = latentfuse("fuse", bundle, *trained.photographs, "-o", tmp_path / "fused.png")
    result.assert_one_line(str(bundle), message)
    assert "pickle" not in result.errors and not (tmp_path / "fused.png").exists()


def test_a_bundle_of_the_first_version_loads(trained: Trained, bundle: Path) -> None:
    """It has no sums, and its weights say nothing of the images."""
    older_of(32)(bundle)
    a, b = trained.photographs
    assert torch.equal(
        pipeline.load_bundle(bundle).fuse(a, b, 0.3), pipeline.load_bundle(trained.bundle).fuse(a, b, 0.3)
    )


def test_what_a_bundle_promises_is_checked_before_memory_is_taken(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(lambda info: info["config"]["model"].update(base_channels=1024))(bundle)
    monkeypatch.setattr("pipeline.inference.weights.load_file", lambda path: pytest.fail("it has read them"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="does not match the weights"):
        pipeline.load_bundle(bundle)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"a": "../../model.safetensors"}}'])
def test_a_damaged_index_is_refused_in_one_line(trained: Trained, tmp_path: Path, index: str) -> None:
    bundle = tmp_path / "parts"
    assert latentfuse("export", trained.run, bundle, "--max-shard-size", "30KB").code == 0
    (bundle / "model.safetensors.index.json").write_text(index)
    latentfuse("fuse", bundle, *trained.photographs, "-o", tmp_path / "fused.png").assert_one_line(str(bundle))
