"""A checkpoint as a bundle: which weights, and what in the folder may be replaced."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import Trained, file_size_limit, latentfuse, listing

import pipeline
from pipeline.training import checkpoint
from pipeline.training.export import export_bundle

FILES = {"README.md", "config.json", "model.safetensors"}


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
    assert info["elements"] == [{"name": f"element {n}", "text": ""} for n in range(1, 6)]
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
