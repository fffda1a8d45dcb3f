"""All stages in a row, and what they show."""

import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from running import (
    TEST,
    TRAIN,
    Result,
    Trained,
    latentfuse,
    listing,
    make_photographs,
    scalars,
    tiny_arguments,
    wait_for,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import load_bundle
from pipeline.config.schema import LAYERS, Config
from pipeline.data.shards.reader import ShardReader
from pipeline.inference.pictures import GAP, LEAST
from pipeline.training import checkpoint
from pipeline.training.board import FUSION, HELD_OUT
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage
from pipeline.training.pretrain import PretrainStage

TERMS = ("adversarial", "content", "style", "reconstruction", "total_variation")
SHARED_TAGS = {
    "loss/total",
    "loss/autoencoder",
    "speed/images_per_second",
    "speed/data_wait_share",
    "gradient_norm/autoencoder",
    "learning_rate/autoencoder",
}
TAGS = {
    "pretrain": SHARED_TAGS | {"loss_weighted/autoencoder"},
    "train": SHARED_TAGS
    | {f"{kind}/{term}" for kind in ("loss", "loss_weighted") for term in (*TERMS, "penalty")}
    | {f"loss_layer/{layer}" for layer in LAYERS}
    | {
        "critic/real",
        "critic/fake",
        "critic/wasserstein",
        "gradient_norm/discriminator",
        "learning_rate/discriminator",
    },
}
MEASURES = {"pretrain": HELD_OUT, "train": (*HELD_OUT, *FUSION)}


@pytest.mark.parametrize("stage", ["pretrain", "train"])
def test_tensorboard_has_everything_from_the_first_step(trained: Trained, stage: str) -> None:
    shown = scalars(trained.run, stage)
    assert TAGS[stage] <= shown.keys() and not any(tag.startswith("amp/") for tag in shown)
    for tag in MEASURES[stage]:
        assert list(shown.pop(tag)) == [4], tag
    for tag, values in shown.items():
        assert list(values) == [1, 2, 3, 4], tag
        assert all(math.isfinite(value) for value in values.values()), tag


def test_the_total_is_the_sum_of_the_weighted_terms(trained: Trained) -> None:
    shown = scalars(trained.run, "train")
    weights = Config.model_validate(yaml.safe_load((trained.run / "config.yaml").read_text())).loss_weights
    for step in range(1, 5):
        weighted = {term: shown[f"loss_weighted/{term}"][step] for term in TERMS}
        assert shown["loss/total"][step] == pytest.approx(sum(weighted.values()), rel=1e-5)
        for term, value in weighted.items():
            assert value == pytest.approx(getattr(weights, term) * shown[f"loss/{term}"][step], rel=1e-5)
        style = sum(shown[f"loss_layer/{layer}"][step] for layer in LAYERS[:3])
        content = sum(shown[f"loss_layer/{layer}"][step] for layer in LAYERS[3:])
        assert (shown["loss/style"][step], shown["loss/content"][step]) == pytest.approx((style, content), rel=1e-5)
        critic = shown["critic/real"][step] - shown["critic/fake"][step]
        assert shown["critic/wasserstein"][step] == pytest.approx(critic, rel=1e-3, abs=1e-5)


def test_tensorboard_shows_the_held_out_pairs(trained: Trained) -> None:
    fusion = {"fusion/strip", "fusion/elements", "fusion/effects"}
    for stage, names in (("pretrain", {"held_out/reconstruction"}), ("train", fusion)):
        events = EventAccumulator(str(trained.run / "tensorboard" / stage)).Reload()
        assert set(events.Tags()["images"]) == names
        assert all(events.Images(name)[0].step == 4 for name in names)


def test_run_does_every_stage_and_the_second_time_nothing(tmp_path: Path) -> None:
    photographs, run = make_photographs(tmp_path / "photographs", TRAIN + TEST), tmp_path / "run"
    arguments = tiny_arguments(run, run / "shards", f"data.source={photographs}", "data.split=0.3")
    first = latentfuse("run", *arguments)
    assert first.code == 0 and "10 images" not in first.errors, first
    made = [run / "bundle", run / "evaluation", run / "strip.png", run / "tensorboard"]
    assert all(path.exists() and str(path) in first.out.split("Made:")[1] for path in made)
    newest, _ = checkpoint.newest(run / "train" / "checkpoints")
    assert newest is not None and load_bundle(run / "bundle").trained["checkpoint"] == newest.digest
    with Image.open(run / "strip.png") as strip:
        assert strip.width == 6 * LEAST + 5 * GAP and strip.height > 4 * (LEAST + GAP)  # two pairs of test images
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert "| reconstruction, PSNR" in (run / "bundle" / "README.md").read_text(), "the card shows what was measured"
    assert metrics["bundle"]["checkpoint"] == newest.digest and "| reconstruction L1 |" in first.out

    files = sorted(
        path for path in run.rglob("*") if path.is_file() and path.name not in ("strip.png", ".lock", "status.json")
    )
    before, names = {path: path.stat().st_mtime_ns for path in files}, listing(run)
    clock = tmp_path / "clock"  # of the file system; once it has moved on, a file that is written again tells

    def moved_on() -> bool:
        clock.touch()
        return clock.stat().st_mtime_ns > max(before.values())

    wait_for(moved_on)
    second = latentfuse("run", *arguments)
    assert second.code == 0 and "0 shards new" in second.out
    assert all(f"{stage}: already finished" in second.out for stage in ("pretrain", "train"))
    assert "export:" not in second.out and second.out.split("Made:")[1] == first.out.split("Made:")[1]
    assert listing(run) == names and {path: path.stat().st_mtime_ns for path in files} == before

    more = latentfuse("run", *arguments, "--set", "training.fusion_steps=6")
    assert more.code == 0 and "pretrain: already finished" in more.out and "train 6/6" in more.out
    assert load_bundle(run / "bundle").trained["step"] == 6
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["bundle"]["step"] == 6


def test_pretraining_holds_no_memory_while_the_fusion_trains(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[weakref.ref[object]] = []
    alive: list[int] = []
    first, second = PretrainStage.__init__, FusionStage.__init__

    def note(self: PretrainStage, setup: Context) -> None:
        first(self, setup)
        networks.append(weakref.ref(self.average.trained))

    def count(self: FusionStage, *arguments: Any) -> None:
        alive.append(sum(network() is not None for network in networks))
        second(self, *arguments)

    monkeypatch.setattr(PretrainStage, "__init__", note)
    monkeypatch.setattr(FusionStage, "__init__", count)
    steps = ("training.pretrain_steps=1", "training.fusion_steps=1")
    assert latentfuse("run", *tiny_arguments(tmp_path / "run", trained.shards, *steps)).code == 0
    assert len(networks) == 1 and alive == [0]


def test_run_paints_its_own_faces(tmp_path: Path) -> None:
    run = tmp_path / "run"
    painted = ("data.source=synth", "data.synth_count=12", "data.split=0.25")
    result = latentfuse("run", *tiny_arguments(run, run / "shards", *painted, "training.fusion_steps=1"))
    assert result.code == 0 and "shard: 12 images" in result.out
    assert len(list((run / "faces" / "img_align_celeba").glob("*.jpg"))) == 12
    with (
        Image.open(run / "bundle" / "strip.png") as strip,
        Image.open(run / "evaluation" / "strips.png") as measured_one,
    ):
        assert strip.size == measured_one.size, "the card shows painted faces"

    def again(*settings: str) -> Result:
        return latentfuse("run", *tiny_arguments(run, run / "shards", *painted, "training.fusion_steps=1", *settings))

    again("data.synth_count=16").assert_one_line("data.synth_count: 16 now, but 12 were painted and sharded")
    assert len(list((run / "faces" / "img_align_celeba").glob("*.jpg"))) == 12, "a refusal changes nothing"
    assert again().code == 0

    def measured() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((run / "evaluation" / "metrics.json").read_text())
        return found

    assert measured()["effects"]["count"] == 3 and "path" not in measured()
    assert again("evaluation.pairs=2", "evaluation.corner_pairs=1").code == 0
    assert measured()["effects"]["count"] == 2 and measured()["path"]["count"] == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_that_cannot_be_read(trained: Trained, tmp_path: Path, split: str) -> None:
    """Refused before the first step; where some are allowed all goes through, but nothing is measured on others."""
    shards = shutil.copytree(trained.shards, tmp_path / "shards")
    reader = ShardReader(shards / split)
    sample = reader.locate(1)
    tar = shards / split / sample.shard
    whole = tar.read_bytes()
    tar.write_bytes(whole[: sample.offset + 100] + bytes(8) + whole[sample.offset + 108 :])
    arguments = tiny_arguments(tmp_path / "run", shards)
    name = f"{tar}: sample {sample.key}: damaged"
    latentfuse("run", *arguments).assert_one_line(name)
    assert not list((tmp_path / "run").rglob("step-*"))
    result = latentfuse("run", *arguments, "--set", "data.max_bad_samples=1")
    assert f"left out (1 of 1 allowed): {name}" in result.errors
    if split == "test":
        assert result.code == 2 and result.errors.splitlines()[-1].startswith(f"latentfuse: {name}")
        tar.write_bytes(whole)
        result = latentfuse("run", *arguments)
        assert "train: already finished" in result.out
    assert result.code == 0 and "Made:" in result.out, result


def test_run_without_source_needs_shards(tmp_path: Path) -> None:
    result = latentfuse("run", *tiny_arguments(tmp_path / "run", tmp_path / "shards"))
    result.assert_one_line(str(tmp_path / "shards" / "train"), "shard SOURCE OUT")


def test_run_with_another_source_is_refused(trained: Trained, tmp_path: Path) -> None:
    arguments = tiny_arguments(tmp_path / "run", trained.shards, f"data.source={make_photographs(tmp_path / 'p', 9)}")
    before = listing(trained.shards)
    latentfuse("run", *arguments, "--set", "data.split=0.3").assert_one_line("another source")
    assert listing(trained.shards) == before


def test_too_little_gpu_memory_is_one_line(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(PretrainStage, "step", no_room)
    result = latentfuse("pretrain", *tiny_arguments(tmp_path / "run", trained.shards))
    result.assert_one_line("training.micro_batch_size: 4 needs more GPU memory")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 2


def test_training_from_a_stream(trained: Trained, tmp_path: Path) -> None:
    tars = trained.shards / "train" / "shard-{000000..000002}.tar"
    arguments = tiny_arguments(tmp_path / "run", trained.shards, f"data.stream={tars}")
    result = latentfuse("run", *arguments)
    assert result.code == 0 and "Made:" in result.out, result
    longer = latentfuse("train", *arguments, "--set", "training.fusion_steps=5")
    assert longer.code == 0 and "train: resumed from" in longer.out and "train 5/5" in longer.out
    other = latentfuse("train", *arguments, "--set", f"data.stream={trained.shards}/train/shard-000000.tar")
    other.assert_one_line("was trained on other shards than")


def test_a_stream_needs_held_out_images_and_no_source(trained: Trained, tmp_path: Path) -> None:
    tars = f"data.stream={trained.shards / 'train' / 'shard-000000.tar'}"
    nowhere = latentfuse("pretrain", *tiny_arguments(tmp_path / "run", tmp_path / "nowhere", tars))
    nowhere.assert_one_line(str(tmp_path / "nowhere" / "test"), "held-out images")
    one = tmp_path / "one"
    assert latentfuse("shard", trained.shards / "photographs", one, "--split", "0.07").code == 0
    lonely = latentfuse("pretrain", *tiny_arguments(tmp_path / "run", one, tars))
    lonely.assert_one_line(str(one / "test"), "1 image; at least 2 are needed to show a pair")
    both = latentfuse("run", *tiny_arguments(tmp_path / "run", trained.shards, tars, "data.source=synth"))
    both.assert_one_line("data.stream", "data.source")
