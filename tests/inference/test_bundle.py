"""Bundles: the weights of a checkpoint, for those who only use them."""

import json
import os
import resource
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
from pipeline.common import files
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


def change(bundle: Path, apply: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other weights, and the sums of these."""
    path = bundle / "model.safetensors"
    weights = load_file(path)
    apply(weights)
    save_file(weights, path, metadata={"image_size": "32"})
    edit(lambda info: info["sha256"].update({path.name: files.sha256(path)}))(bundle)


def test_the_perceptual_network_has_the_scales_of_training(trained: Trained, bundle: Path) -> None:
    change(bundle, lambda weights: weights.update({"scales.factor": torch.arange(1.0, 6.0)}))
    network = pipeline.load_bundle(bundle).perceptual()
    assert torch.equal(network.scales.factor, torch.arange(1.0, 6.0))


def test_export_replaces_a_bundle_but_nothing_else(trained: Trained, bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.safetensors").write_bytes(b"old")
    (bundle / "model-00001-of-00002.safetensors").write_bytes(b"of a larger one")
    (tmp_path / "empty").mkdir()
    others = {".bundle.old", ".bundle.tmp", ".bundle-0123abcd.old"}  # of anybody
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    left = Path(shutil.copytree(bundle, tmp_path / ".bundle-76543210.tmp"))  # by an export that was killed
    assert latentfuse("export", trained.run, bundle).code == latentfuse("export", trained.run, tmp_path / "empty").code
    assert listing(bundle) == listing(tmp_path / "empty") == FILES and not left.exists()
    assert {path.parent.name for path in tmp_path.rglob("precious")} == others
    pipeline.load_bundle(bundle)


def with_notes(bundle: Path) -> Path:
    (bundle / "notes.txt").write_text("precious")
    return bundle


def with_a_copy(bundle: Path) -> Path:
    shutil.copy(bundle / "model.safetensors", bundle / "model-best.safetensors")
    return bundle


def with_a_folder(bundle: Path) -> Path:
    (bundle / "README.md").unlink()
    (bundle / "README.md").mkdir()
    return bundle


def with_a_link(bundle: Path) -> Path:
    (bundle / "model.safetensors").rename(bundle.parent / "elsewhere")
    (bundle / "model.safetensors").symlink_to(bundle.parent / "elsewhere")
    return bundle


def link(bundle: Path) -> Path:
    (bundle.parent / "link").symlink_to(bundle)
    return bundle.parent / "link"


def loop(bundle: Path) -> Path:
    (bundle.parent / "loop").symlink_to("loop")
    return bundle.parent / "loop"


def of_another_program(bundle: Path) -> Path:
    (bundle / "config.json").write_text('{"model_type": "latentfuse"}')
    return bundle


def a_file(bundle: Path) -> Path:
    (bundle.parent / "file").write_text("precious")
    return bundle.parent / "file"


NOT_REPLACED: dict[Callable[[Path], Path], str] = {
    with_notes: "holds notes.txt, which",
    with_a_copy: "holds model-best.safetensors, which",
    with_a_folder: "holds README.md, which",
    with_a_link: "holds model.safetensors, which",
    link: "is a link",
    loop: "is a link",
    of_another_program: "exists and is not a bundle",
    a_file: "exists and is not a bundle",
}


@pytest.mark.parametrize("made", NOT_REPLACED, ids=lambda made: made.__name__)
def test_whatever_is_not_a_bundle_s_stays(
    trained: Trained, bundle: Path, tmp_path: Path, made: Callable[[Path], Path]
) -> None:
    out = made(bundle)
    before = {path: path.lstat() for path in tmp_path.rglob("*")}
    latentfuse("export", trained.run, out).assert_one_line(str(out), NOT_REPLACED[made])
    after = {path: path.lstat() for path in tmp_path.rglob("*")}
    assert after.keys() == before.keys() and all(after[path].st_mtime_ns == before[path].st_mtime_ns for path in after)


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
    "not a number": (changed(lambda weights: weights[ONE].fill_(float("nan"))), f"{ONE} and 0 more"),
    "infinite": (changed(lambda weights: weights["scales.factor"].fill_(float("inf"))), "not finite numbers"),
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
