"""docs/scaling.md holds what docs/scaling.py computes, and that counts what the code does."""

import importlib.util
import io
import itertools
import re
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from running import REPOSITORY, batch_of, make_shards, new_setup, tiny_config
from torch.distributed import _compute_bucket_assignment_by_size
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.data.shards import format as shards
from pipeline.data.shards import packing
from pipeline.models.autoencoder import FusionAutoencoder
from pipeline.models.discriminator import Discriminator
from pipeline.training import checkpoint
from pipeline.training.fusion import FusionStage

RECIPE = ("blocks", "norm", "structure", "discriminator_norm")
SMALL = ("model.base_channels=8", "data.image_size=32", "perceptual.arch=vgg19")


def load_script() -> ModuleType:
    path = REPOSITORY / "docs" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scaling = load_script()


class CallCounter(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


def new_stage(tmp_path: Path, micro_batch_size: int) -> FusionStage:
    """With a global batch of 4, and the rest of docs/scaling.py's small configuration."""
    run = tmp_path / f"run{micro_batch_size}"
    recipe = (f"model.{name}={getattr(scaling.load(scaling.DEFAULT).model, name)}" for name in RECIPE)
    overrides = (*SMALL, f"training.micro_batch_size={micro_batch_size}", "model.elements=5", *recipe)
    return FusionStage(new_setup(tiny_config(run, make_shards(tmp_path / "shards"), *overrides)), run)


def test_the_document_holds_the_scripts_tables() -> None:
    document = scaling.DOCUMENT.read_text(encoding="utf-8")
    assert scaling.filled(document) == document, "run: python docs/scaling.py"
    assert sorted(re.findall("<!-- (.*) -->", document)[::2]) == sorted(scaling.tables())


def test_filling_replaces_the_tables_and_nothing_else() -> None:
    document = scaling.DOCUMENT.read_text(encoding="utf-8")
    spoilt = document.replace("| E | 11", "| E | 12").replace("<!-- end -->", "lost\n<!-- end -->", 1)
    assert spoilt != document and scaling.filled(spoilt) == document


def test_parameters_and_flop_at_full_size() -> None:
    counts = scaling.count()

    def convolutions(channels: tuple[int, ...], side: int) -> int:
        """4 x 4 kernels, the first on so many places, each further one on four times as many."""
        pairs = itertools.pairwise(channels)
        return sum(2 * 16 * inputs * outputs * (side * 2**n) ** 2 for n, (inputs, outputs) in enumerate(pairs))

    critic = convolutions((1024, 512, 256, 128, 64, 3), 4)
    spread = 64 * 2 * 64 * 16 * (16 + 64)  # 64 channels from 16 x 16 to 64 x 64, one axis at a time
    styles = 3 * 2 * 64 * 64
    encoder = convolutions((832, 512, 256, 128, 64, 3), 4) + styles
    drawing = convolutions((624, 512, 256, 128, 64, 3), 4) + convolutions((208, 512, 256), 4)
    generator = drawing + 2 * 256 * 64 * 16**2 + styles
    # Shortcuts between uneven numbers of channels: in E, then in G.
    of_pixels = 2 * 12 * 64 * 64**2
    of_e, of_g = 2 * 16 * 2048 * 832 + of_pixels, 2 * 16 * 2048 * (624 + 208) + of_pixels
    linear, first = 2 * 1024 * 4 * 4, 2 * 16 * 3 * 64 * 64**2  # the first layer hands no gradient to its pixels
    forward = encoder + 2 * generator
    fixed = 5 * spread + of_e + 2 * of_g  # products with constants: the backward is one more
    assert counts.flop["E, G: A' and C"] == forward + fixed == counts.flop["+ C again"]
    assert counts.flop["E, G: backward"] == 2 * forward - first + fixed - of_pixels
    assert counts.flop["D: real and fused"] == 2 * (critic + linear) == counts.flop["penalty: gradient"]
    assert counts.flop["D: backward"] == 2 * (2 * (critic + linear) - first)
    assert counts.flop["penalty: double backward"] == pytest.approx(4 * critic, rel=1e-3)
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512)
    sides = (128, 128, 64, 64, 32, 32, 32, 32, 16, 16, 16, 16, 8)
    vgg = 2 * 9 * sum(a * b * s**2 for a, b, s in zip(widths[:-1], widths[1:], sides, strict=True))
    assert counts.flop["VGG: real"] == counts.flop["VGG: fused"] == vgg
    assert counts.flop["VGG: fused, to its pixels"] == vgg
    assert counts.gradients() == 4 * sum(counts.parameters[name] for name in ("E", "G", "D"))


@pytest.mark.parametrize(("micro_batch_size", "again"), [(4, 0), (2, 1)])
def test_the_parts_add_up_to_the_real_step(tmp_path: Path, micro_batch_size: int, again: int) -> None:
    stage, counts = new_stage(tmp_path, micro_batch_size), scaling.count(*SMALL)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = mock.MagicMock(parents={"Global"})
    with counter:
        stage.step(0, batch_of(stage.context, 0))
    expected = counts.of(*scaling.HALF, *scaling.SINGLE) + again * counts.of("+")
    assert counter.get_total_flops() / 4 == pytest.approx(expected, abs=100)  # Lambda by layer: 5 x 5 products


def test_calls_of_a_micro_batch(tmp_path: Path) -> None:
    calls = []
    for micro_batch_size in (4, 2):
        stage, counter = new_stage(tmp_path, micro_batch_size), CallCounter()
        with counter:
            stage.step(0, batch_of(stage.context, 0))
        calls.append(counter.calls)
    assert calls[1] - calls[0] == pytest.approx(scaling.HOST_CALLS, rel=0.15)


def test_buckets_of_the_all_reduces() -> None:
    config = scaling.load(scaling.DEFAULT)
    modules = (FusionAutoencoder(config.model), Discriminator(config.model, config.penalty, config.data.image_size))
    count = 0
    for networks, module in zip(("EG", "D"), modules, strict=True):
        parameters = list(module.parameters())[::-1]
        buckets, _ = _compute_bucket_assignment_by_size(parameters, [2**20, 25 * 2**20], [False] * len(parameters))
        count += len(buckets)
        assert sum(parameters[i].nbytes for i in buckets[-1]) == pytest.approx(scaling.TAIL[networks], rel=0.05)
    assert count == scaling.BUCKETS


def test_checkpoint_bytes(tmp_path: Path) -> None:
    stage = new_stage(tmp_path, 4)
    stage.step(0, batch_of(stage.context, 0))
    weights = {f"{n}.{key}": value for n, module in stage.modules.items() for key, value in module.state_dict().items()}
    optimizers = {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()}
    path = checkpoint.save(tmp_path / "checkpoints", 1, weights, optimizers, {}, 2)
    written = sum(file.stat().st_size for file in path.iterdir())
    assert written == pytest.approx(scaling.count(*SMALL).checkpoint, rel=0.02)


def write_index(folder: Path, images: int, per_shard: int) -> None:
    """Indexes and manifest of so many images as CelebA's, without the tars."""
    entries, offsets = [], [scaling.SAMPLE * i for i in range(per_shard)]
    numbers = dict.fromkeys(shards.COLUMNS, scaling.JPEG) | {"crc32": 4_000_000_000, "meta_crc32": 4_000_000_000}
    numbers |= {"meta_length": scaling.METADATA, "width": 178, "height": 218}
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, images, per_shard):
        path = folder / shards.shard_name(first // per_shard)
        index: dict[str, Any] = {name: [number] * per_shard for name, number in numbers.items()}
        index |= {"offset": offsets, "meta_offset": offsets, "extensions": ["jpg"] * per_shard, "rejected": []}
        index |= {"keys": [f"{first + i:09d}" for i in range(per_shard)], "schema": shards.SCHEMA, "shard": path.name}
        index |= {"sha256": "0" * 64, "samples": per_shard, "bytes": 10**7}
        packing.write_index(path, index)
        entries.append(packing.shard_entry(path, index))
    packing.write_manifest(folder, shards.Manifest("written", "train", "0" * 64, {}, tuple(entries), ()))


def test_index_bytes(tmp_path: Path) -> None:
    write_index(tmp_path, 10_000, 1_000)
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.index.json"))
    assert on_disk / 10_000 == pytest.approx(scaling.INDEX_JSON, abs=1)
    assert (tmp_path / shards.MANIFEST).stat().st_size / 10 == pytest.approx(scaling.MANIFEST_ENTRY, rel=0.15)
    tracemalloc.start()
    index = shards.ShardIndex.load(tmp_path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == 10_000
    assert held / 10_000 == pytest.approx(scaling.INDEX_MEMORY + scaling.SHARD_OBJECTS / 1_000, rel=0.05)
    assert peak / 10_000 == pytest.approx(scaling.INDEX_PEAK, rel=0.15)


def test_bytes_of_a_sample_in_a_tar() -> None:
    image = packing.EncodedImage(b"x" * scaling.JPEG, "jpg", 178, 218)
    tar = packing._Tar(io.BytesIO())
    tar.add("000001", image, b"y" * scaling.METADATA, 0)
    assert abs(tar.size - scaling.SAMPLE) <= 256  # an average over lengths


def test_what_limits_whom() -> None:
    """The document's sentences that hang on the numbers."""
    alone = 128 / sum(scaling.step(1, 16, 8, 4))

    def efficiency(gpus: int, micro: int, ports: int = 4) -> float:
        return float(micro / sum(scaling.step(gpus, micro, 1, ports)) / alone)

    assert efficiency(8, 16) > 0.9 and efficiency(16, 8) > 0.7 and efficiency(64, 2) < 0.35
    assert efficiency(256, 16) > 0.7 and efficiency(16, 16, ports=1) < 0.85
    assert 64 * efficiency(64, 2) < 1.1 * 32 * efficiency(32, 4), "at a batch of 128, 64 GPUs hardly beat 32"
