"""Two processes train what one process trains: the same losses, the same weights, on every rank."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from forking import start_ranks
from running import Trained, latentfuse, make_shards, scalars, tiny_arguments

from pipeline.common.errors import UserError
from pipeline.data.loading.order import Order
from pipeline.training import checkpoint

GLOBAL = ("training.global_batch_size=8", "training.micro_batch_size=2", "training.fusion_steps=3")


def telling_its_weights() -> None:
    """At the end of a stage every rank writes who it is and a digest of its weights."""
    from pipeline.training import loop

    run = loop.run

    def and_tell(stage: Any, setup: Any) -> None:
        run(stage, setup)
        digest = {
            name: hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()
            for name, module in stage.modules.items()
        }
        ranks = setup.runtime.ranks
        told = {"rank": ranks.rank, "ranks": ranks.world_size, "digest": digest}
        (setup.config.run_dir / f"rank{ranks.rank}.json").write_text(json.dumps(told))

    loop.run = and_tell


def assert_same_training(one: Path, two: Path) -> None:
    """Logged terms and final weights, up to the order in which sums of float32 are taken."""
    first, second = scalars(one, "train"), scalars(two, "train")
    assert first.keys() == second.keys() and list(first["loss/total"]) == [1, 2, 3]
    for tag in first:
        if not tag.startswith("speed/"):
            expected = list(first[tag].values())
            assert list(second[tag].values()) == pytest.approx(expected, rel=2e-3, abs=1e-5), tag
    for tag in ("loss/total", "loss/reconstruction", "loss/style"):
        assert list(second[tag].values()) == pytest.approx(list(first[tag].values()), rel=1e-4), tag
    saved = [checkpoint.find(run / "train") for run in (one, two)]
    for name in ("autoencoder", "average", "discriminator"):
        weights, others = (each.module(name) for each in saved)
        for key, value in weights.items():
            if name != "average" and ("running_" in key or "num_batches" in key):
                continue  # each rank's own, and never used: see ema.py
            # Adam turns a gradient near zero into a step of either sign: few may differ by a step, most by nothing.
            difference = (value.double() - others[key].double()).abs()
            assert difference.median() < 2e-6 and difference.max() < 3e-3, (name, key)


def test_two_processes_equal_one_and_each_other(trained: Trained, tmp_path: Path) -> None:
    init = ("--init", str(trained.run / "pretrain"))
    one = latentfuse("train", *tiny_arguments(tmp_path / "one", trained.shards, *GLOBAL), *init)
    assert one.code == 0, one
    arguments = ("train", *tiny_arguments(tmp_path / "two", trained.shards, *GLOBAL), *init)
    started = start_ranks(tmp_path, 2, *arguments, prepare=telling_its_weights)
    results = [each.finish() for each in started]
    assert [each.code for each in results] == [0, 0], results
    told = [json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["rank"] for each in told] == [0, 1] and all(each["ranks"] == 2 for each in told)
    assert told[0]["digest"] == told[1]["digest"], "every rank holds the same weights"
    assert "train 3/3" in results[0].out and "train 3/3" not in results[1].out, "the main rank alone speaks"
    assert_same_training(tmp_path / "one", tmp_path / "two")


def test_a_batch_that_three_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="is not 3 ranks"):
        Order(10, 0, 8, 2, rank=0, world_size=3)


def on_rank_one_from_elsewhere() -> None:
    """As on a node with its own copy of the shards, which is older."""
    if os.environ["RANK"] == "1":
        sys.argv += ["--set", f"data.shards={os.environ['ELSEWHERE']}"]


def test_ranks_with_other_shards_are_refused(trained: Trained, tmp_path: Path) -> None:
    """They would train to the end, and nothing could resume that."""
    elsewhere = make_shards(tmp_path / "elsewhere", first_seed=50)
    arguments = ("pretrain", *tiny_arguments(tmp_path / "run", trained.shards, *GLOBAL))
    ranks = start_ranks(tmp_path, 2, *arguments, prepare=on_rank_one_from_elsewhere, ELSEWHERE=str(elsewhere))
    results = [each.finish() for each in ranks]
    assert [each.code for each in results] == [2, 2], results
    expected = f"rank 1: {elsewhere / 'train'}: other training data than rank 0 has there; bring this node's up to date"
    results[0].assert_one_line(expected)
    assert not (tmp_path / "run" / "pretrain").exists()
