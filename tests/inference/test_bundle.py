"""Bundles: the weights of a checkpoint, for those who only use them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from running import Trained, file_size_limit, latentfuse, listing
from safetensors.torch import load_file, save_file

import pipeline
from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.training import checkpoint
from pipeline.training.export import export_bundle

FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture
def bundle(trained: Trained, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(trained.bundle, tmp_path / "bundle"))


def test_holds_the_average_weights_of_the_last_checkpoint(trained: Trained) -> None:
    newest, _ = checkpoint.newest(trained.run / "train" / "checkpoints")
    assert newest is not None
    average, raw = newest.module("average"), newest.module("autoencoder")
    loaded = pipeline.load_bundle(trained.bundle).model.state_dict()
    assert loaded.keys() == average.keys()
    assert all(torch.equal(loaded[key], average[key]) for key in average)
    assert not torch.equal(loaded["encoder.body.0.0.weight"], raw["encoder.body.0.0.weight"])


def test_holds_no_pickle_and_says_where_it_comes_from(trained: Trained) -> None:
    assert listing(trained.bundle) == FILES
    assert len({path.stat().st_mode for path in trained.bundle.iterdir()}) == 1, "whoever may read one may read all"
    info = json.loads((trained.bundle / "config.json").read_text())
    assert info["config"]["model"]["base_channels"] == 2
    assert (info["trained"]["stage"], info["trained"]["step"], info["trained"]["images_seen"]) == ("train", 4, 16)
    card = (trained.bundle / "README.md").read_text()
    assert "random weights: a demonstration" in card and info["trained"]["data_hash"][:16] in card


def test_a_run_without_average_exports_the_trained_weights(trained: Trained, tmp_path: Path) -> None:
    found = checkpoint.find(trained.run)
    weights = {key: value for key, value in found.weights.items() if not key.startswith("average.")}
    export_bundle(checkpoint.Checkpoint(found.path, weights, {}, found.state, found.digest), tmp_path / "bundle")
    loaded = pipeline.load_bundle(tmp_path / "bundle")
    assert loaded.trained["weights"] == "autoencoder"
    assert torch.equal(
        loaded.model.state_dict()["encoder.body.0.0.weight"], weights["autoencoder.encoder.body.0.0.weight"]
    )


def test_pretraining_and_single_checkpoints_export_too(trained: Trained, tmp_path: Path) -> None:
    assert latentfuse("export", trained.run / "pretrain", tmp_path / "a").code == 0
    one = trained.run / "train" / "checkpoints" / "step-00000002"
    assert str(one) in latentfuse("export", one, tmp_path / "b").out
    assert pipeline.load_bundle(tmp_path / "a").trained["stage"] == "pretrain"
    assert pipeline.load_bundle(tmp_path / "b").trained["step"] == 2


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


def test_takes_tensors_pictures_paths_and_latents_alike(trained: Trained) -> None:
    bundle = pipeline.load_bundle(str(trained.bundle))
    a, b = trained.photographs
    tensors = [images.normalise(images.fit(images.read(path), 32)) for path in (a, b)]
    expected = bundle.fuse(tensors[0], tensors[1], [1, 0.5, 0, 0, 1])
    assert expected.shape == (1, 3, 32, 32) and not expected.requires_grad and expected.abs().max() <= 1
    assert torch.equal(bundle.fuse(a, str(b), [1, 0.5, 0, 0, 1]), expected)
    assert torch.equal(bundle.fuse(tensors[0][None], b, torch.tensor([1, 0.5, 0, 0, 1])), expected)
    with Image.open(a) as picture_a, Image.open(b) as picture_b:
        from_pillow = bundle.fuse(picture_a, picture_b, [1, 0.5, 0, 0, 1])
    assert (from_pillow - expected).abs().max() < 0.02  # Pillow and torchvision round JPEGs differently
    latents = [bundle.encode(path) for path in (a, b)]
    assert torch.equal(bundle.fuse(latents[0], latents[1], [1, 0.5, 0, 0, 1]), expected)
    assert torch.equal(bundle.fuse(a, latents[1], [1, 0.5, 0, 0, 1]), expected)
    batch = torch.stack(tensors)
    fused = bundle.fuse(batch, batch.flip(0), torch.tensor([[1, 0.5, 0, 0, 1], [0, 0, 0, 0, 0.0]]))
    torch.testing.assert_close(fused[:1], expected)
    torch.testing.assert_close(fused[1:], bundle.generate(bundle.encode(tensors[0])))


def test_every_shape_of_lambda(trained: Trained) -> None:
    bundle = pipeline.load_bundle(trained.bundle)
    a, b = (bundle.load_image(path) for path in trained.photographs)
    expected = bundle.fuse(a, b, [0.25] * 5)
    for lambda_ in (0.25, torch.full((1, 5), 0.25), torch.full((5, 1, 1), 0.25), torch.full((1, 5, 1, 1), 0.25)):
        assert torch.equal(bundle.fuse(a, b, lambda_), expected)
    assert torch.equal(bundle.fuse(a, b, 1), bundle.generate(bundle.encode(a)))
    assert torch.equal(bundle.fuse(a, b, 0), bundle.generate(bundle.encode(b)))


@pytest.mark.parametrize(
    ("lambda_", "message"),
    [
        ([1, 0], "2 values: this bundle takes 1 or 5 numbers"),
        ([0.5] * 6, "6 values"),
        ([0, 0, 0, 0, 1.5], "1.5 is outside"),
        (-0.1, "-0.1 is outside"),
        (float("nan"), "nan is outside"),
        (torch.ones(5, 2, 2), "shape"),
        (torch.ones(1, 5, 1), "shape"),
        (torch.ones(2, 2), "shape"),
        (torch.ones(1, 1, 5, 1, 1), "shape"),
    ],
)
def test_a_lambda_that_does_not_fit_is_refused(trained: Trained, lambda_: Any, message: str) -> None:
    """Whatever is fused: photographs or latents."""
    bundle = pipeline.load_bundle(trained.bundle)
    z = bundle.encode(trained.photographs[0])
    for a in (z, trained.photographs[0]):
        with pytest.raises(UserError, match=message):
            bundle.fuse(a, z, lambda_)


def test_batches_that_do_not_fit_each_other_are_refused(trained: Trained) -> None:
    bundle = pipeline.load_bundle(trained.bundle)
    z = torch.cat([bundle.encode(path) for path in trained.photographs])
    for a, lambda_ in ((torch.cat([z, z[:1]]), 0.5), (z, torch.ones(3, 5))):
        with pytest.raises(UserError, match="batches of 2, 3"):
            bundle.fuse(a, z, lambda_)
    many = bundle.fuse(z[:1], z[1:], torch.tensor([[1.0] * 5, [0.5] * 5]))  # one pair, two Lambdas
    torch.testing.assert_close(many[1:], bundle.fuse(z[:1], z[1:], 0.5))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 32, 32), (32, 32), (1, 1, 3, 32, 32)])
def test_an_image_tensor_that_does_not_fit_is_refused(trained: Trained, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="an image tensor of shape"):
        pipeline.load_bundle(trained.bundle).load_image(torch.zeros(shape))


def test_the_perceptual_network_has_the_scales_of_training(trained: Trained, bundle: Path) -> None:
    weights = load_file(bundle / "model.safetensors")
    weights["scales.factor"] = torch.arange(1.0, 6.0)
    save_file(weights, bundle / "model.safetensors")
    network = pipeline.load_bundle(bundle).perceptual()
    assert torch.equal(network.scales.factor, torch.arange(1.0, 6.0))


def test_export_replaces_a_bundle_but_nothing_else(trained: Trained, bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.safetensors").write_bytes(b"old")
    assert latentfuse("export", trained.run, bundle).code == 0
    assert listing(bundle) == FILES and listing(tmp_path) == {"bundle", *(f"bundle/{name}" for name in FILES)}
    pipeline.load_bundle(bundle)
    for name, content in (("notes.txt", "precious"), ("config.json", '{"model_type": "another program\'s"}')):
        other = tmp_path / f"other-{name}"
        other.mkdir()
        (other / name).write_text(content)
        latentfuse("export", trained.run, other).assert_one_line("exists and is not a bundle")
        assert (other / name).read_text() == content and listing(other) == {name}
    (tmp_path / "file").write_text("precious")
    latentfuse("export", trained.run, tmp_path / "file").assert_one_line("is not a bundle")
    assert (tmp_path / "file").read_text() == "precious"


def test_export_to_the_present_folder(trained: Trained, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    assert latentfuse("export", trained.run, ".").code == 0
    pipeline.load_bundle(bundle)


@pytest.mark.parametrize("limit", [3_000, 20_000])
def test_no_room_leaves_the_bundle_that_was_there(trained: Trained, bundle: Path, tmp_path: Path, limit: int) -> None:
    before = (bundle / "model.safetensors").read_bytes()
    with file_size_limit(limit):
        result = latentfuse("export", trained.run, bundle)
    result.assert_one_line(str(bundle), "could not be written")
    assert (bundle / "model.safetensors").read_bytes() == before
    assert listing(tmp_path) == {"bundle", *(f"bundle/{name}" for name in FILES)}


def test_ctrl_c_leaves_the_bundle_that_was_there(
    trained: Trained, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.training.export.save_torch_state_dict", interrupt)
    latentfuse("export", trained.run, bundle).assert_one_line("Ctrl-C", code=130)
    assert listing(tmp_path) == {"bundle", *(f"bundle/{name}" for name in FILES)}


@pytest.mark.parametrize("size", ["abc", "10", "", "MB", "infGB", "-5GB", "0MB"])
def test_a_size_that_is_none_is_refused(trained: Trained, tmp_path: Path, size: str) -> None:
    latentfuse("export", trained.run, tmp_path / "b", "--max-shard-size", size).assert_one_line("--max-shard-size")
    assert not listing(tmp_path)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        info = json.loads((bundle / "config.json").read_text())
        change(info)
        (bundle / "config.json").write_text(json.dumps(info))

    return apply


def cut(length: int) -> Callable[[Path], object]:
    return lambda bundle: (bundle / "model.safetensors").write_bytes(
        (bundle / "model.safetensors").read_bytes()[:length]
    )


def without_one_weight(bundle: Path) -> None:
    weights = load_file(bundle / "model.safetensors")
    del weights["model.encoder.body.1.1.bias"]
    save_file(weights, bundle / "model.safetensors")


def with_one_more(bundle: Path) -> None:
    weights = load_file(bundle / "model.safetensors")
    save_file({**weights, "model.another": torch.zeros(1)}, bundle / "model.safetensors")


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
    "one weight less": (without_one_weight, "lacks model.encoder.body.1.1.bias"),
    "one weight more": (with_one_more, "unknown model.another"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused_in_one_line(trained: Trained, bundle: Path, tmp_path: Path, damage: str) -> None:
    apply, message = DAMAGES[damage]
    apply(bundle)
    result = latentfuse("fuse", bundle, *trained.photographs, "-o", tmp_path / "fused.png")
    result.assert_one_line(str(bundle), message)
    assert "pickle" not in result.errors and not (tmp_path / "fused.png").exists()


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"a": "../../model.safetensors"}}'])
def test_a_damaged_index_is_refused_in_one_line(trained: Trained, tmp_path: Path, index: str) -> None:
    bundle = tmp_path / "parts"
    assert latentfuse("export", trained.run, bundle, "--max-shard-size", "30KB").code == 0
    (bundle / "model.safetensors.index.json").write_text(index)
    latentfuse("fuse", bundle, *trained.photographs, "-o", tmp_path / "fused.png").assert_one_line(str(bundle))
