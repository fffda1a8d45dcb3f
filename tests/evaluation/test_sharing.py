"""An evaluation that two ranks share gives the numbers of one process, and ends in order where it cannot go on."""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forking import Started, narrow, start_command, start_ranks, until_released
from running import Result, Trained, listing, scalars, tiny_arguments

from pipeline.data.loading.loader import FaceImages
from pipeline.data.shards.reader import ShardReader
from pipeline.evaluation.output import read_rows
from pipeline.evaluation.sharing import share

MINUTE = 60


class Two:
    """Two ranks in turn, in one process: the second is handed what the first has found."""

    world_size = 2

    def __init__(self, rank: int, first: list[Any]) -> None:
        self.rank, self.first = rank, first

    def together(self, work: Any) -> Any:
        return work()

    def on_main(self, work: Any) -> Any:
        return work()

    def gathered(self, mine: Any) -> list[Any]:
        return [self.first, mine] if self.rank else [mine, [None] * len(mine)]


@pytest.mark.parametrize("count", [1, 4, 5])
def test_results_are_in_the_order_of_the_items(count: int) -> None:
    items = list(range(count))
    done = list[int]()

    def square(item: int) -> int:
        done.append(item)
        return item * item

    found = share(Two(1, [item * item for item in items[::2]]), square, items, "squares", "numbers")
    assert found == [item * item for item in items] and done == items[1::2]


def counted() -> None:
    """Every rank tells how many images it has read to be measured."""
    narrow()
    load = FaceImages.load
    read = 0

    def counting(self: FaceImages, indices: Sequence[int]) -> Any:
        nonlocal read
        read += len(indices)
        Path(os.environ["COUNTS"] + os.environ["RANK"]).write_text(str(read))
        return load(self, indices)

    FaceImages.load = counting  # type: ignore[assignment, method-assign]


def assert_close(one: Any, other: Any) -> None:
    """Numbers are equal to rounding, all else exactly."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - {"per_image"}:  # a digest of rounded rows
            assert_close(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_close(*pair)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    else:
        assert one == other


def finished(ranks: list[Started]) -> list[Result]:
    results = [each.finish() for each in ranks]
    assert [each.code for each in results] == [0] * len(ranks), results
    return results


def test_two_ranks_find_what_one_process_finds(trained: Trained, thorough: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    arguments = ("evaluate", thorough, trained.shards / "test", "--json", "--run", run, "--out")
    counts = {"COUNTS": str(tmp_path / "read")}
    out, alone = tmp_path / "shared", tmp_path / "alone"
    main, other = finished(start_ranks(tmp_path, 2, *arguments, out, prepare=counted, **counts))
    finished([start_command(tmp_path / "job", *arguments, alone, prepare=narrow)])
    metrics = json.loads((out / "metrics.json").read_text())
    assert json.loads(main.out) == metrics and not other.out and not other.errors
    assert_close(metrics, json.loads((alone / "metrics.json").read_text()))
    rows, expected = (read_rows((folder / "per_image.json").read_text()) for folder in (out, alone))
    assert rows.keys() == expected.keys()
    for section, columns in rows.items():
        for name, values in columns.items():
            np.testing.assert_allclose(values, expected[section][name], rtol=1e-3, atol=1e-5, err_msg=section)
    assert listing(out) == listing(alone)
    assert all(int((tmp_path / f"read{rank}").read_text()) > 4 for rank in "01"), "both have measured"
    assert scalars(run, "evaluate")["effects/own_share"]


def test_run_shares_its_evaluation(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("training.micro_batch_size=2", "training.pretrain_steps=1", "training.fusion_steps=1")
    arguments = ("run", *tiny_arguments(run, trained.shards, *settings))
    ranks = start_ranks(tmp_path, 2, *arguments, prepare=counted, COUNTS=str(tmp_path / "read"))
    main, other = finished(ranks)
    assert "| reconstruction L1 |" in main.out and "Made:" in main.out and "Made:" not in other.out
    assert (run / "evaluation" / "metrics.json").is_file() and (run / "strip.png").is_file()
    assert int((tmp_path / "read1").read_text()) > 4


def test_what_one_rank_cannot_read_is_said_once(trained: Trained, tmp_path: Path) -> None:
    """Of four test images in batches of three, rank 1 reads the last one alone."""
    shards = Path(shutil.copytree(trained.shards, tmp_path / "shards"))
    reader = ShardReader(shards / "test")
    sample = reader.locate(0)
    with (shards / "test" / sample.shard).open("r+b") as tar:
        tar.seek(sample.offset + sample.length // 2)
        tar.write(bytes(8))
    out = tmp_path / "evaluation"
    results = [
        each.finish() for each in start_ranks(tmp_path, 2, "evaluate", trained.bundle, shards / "test", "--out", out)
    ]
    assert [each.code for each in results] == [2, 2], results
    assert f"sample {sample.key}: damaged" in results[0].errors and results[0].errors.count("\n") == 1
    assert not results[1].errors and not out.exists()


@pytest.mark.parametrize("missing", ["bundle", "shards"])
def test_what_no_rank_finds_is_said_once(trained: Trained, tmp_path: Path, missing: str) -> None:
    given = {"bundle": trained.bundle, "shards": trained.shards} | {missing: tmp_path / "nowhere"}
    ranks = start_ranks(tmp_path, 2, "evaluate", given["bundle"], given["shards"], "--out", tmp_path / "out")
    results = [each.finish() for each in ranks]
    results[0].assert_one_line(str(tmp_path / "nowhere"))
    assert results[1].code == 2 and not results[1].errors and not (tmp_path / "out").exists()


def elsewhere() -> None:
    """Rank 1 has other test images, as on a disk of its own."""
    if os.environ["RANK"] == "1":
        import sys

        sys.argv[3] = os.environ["ELSEWHERE"]


def test_ranks_with_other_images_are_refused(trained: Trained, tmp_path: Path) -> None:
    arguments = ("evaluate", trained.bundle, trained.shards / "test", "--out", tmp_path / "evaluation")
    other = str(trained.shards / "train")
    ranks = start_ranks(tmp_path, 2, *arguments, prepare=elsewhere, ELSEWHERE=other)
    results = [each.finish() for each in ranks]
    results[0].assert_one_line(f"rank 1: {other}: not what rank 0 has there; bring this node's up to date")
    assert results[1].code == 2 and not (tmp_path / "evaluation").exists()


def with_one_gpu() -> None:
    """As far as this process is told; it is not used."""
    torch.cuda.device_count = lambda: 1
    torch.cuda.set_device = lambda device: None


def test_each_rank_has_a_gpu_of_its_own(trained: Trained, tmp_path: Path) -> None:
    arguments = ("evaluate", trained.bundle, trained.shards / "test", "--out", tmp_path / "out", "--device", "cuda")
    results = [each.finish() for each in start_ranks(tmp_path, 2, *arguments, prepare=with_one_gpu)]
    results[0].assert_one_line("rank 1: --device cuda: more ranks on this machine than GPUs, of which there are 1")
    assert results[1].code == 2 and not (tmp_path / "out").exists()


def waits_on_rank_one() -> None:
    narrow()
    if os.environ["RANK"] == "1":
        FaceImages.load = lambda *_: until_released("measuring")  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 76), (signal.SIGTERM, 75)])
def test_a_rank_that_is_lost_or_stopped_ends_the_others(
    trained: Trained, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "evaluation"
    arguments = ("evaluate", trained.bundle, trained.shards / "test", "--out", out)
    ranks = start_ranks(tmp_path, 2, *arguments, prepare=waits_on_rank_one, RELEASE=str(tmp_path / "release"))
    ranks[1].wait_for_text("measuring")
    ranks[1].signal_group(number)
    (tmp_path / "release").touch()
    expected = "lost another rank" if code == 76 else "stopped by SIGTERM"
    ranks[0].finish(MINUTE).assert_one_line(expected, code=code)
    assert not (out / "metrics.json").exists() and all(each.group_is_gone() for each in ranks)
