"""Many processes fill one folder: the same bytes as from one, nothing lost unnoticed, nobody in another's way."""

import json
import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from making import COUNT, hashes, jpegs
from running import latentfuse

from pipeline.common.errors import UserError
from pipeline.data.shards import array_jobs as parts
from pipeline.data.shards.array_jobs import Part, locked
from pipeline.data.shards.format import load_manifest
from pipeline.data.shards.packing import Task
from pipeline.data.shards.writing import Summary, write_shards
from pipeline.data.source.photographs import Record

SHARDS = 9
"""Of 15, 4 and 4 images, by threes."""


def write(source: Path, out: Path, part: str | None = None, **options: Any) -> Summary:
    usual: dict[str, Any] = {"split": "official", "samples_per_shard": 3, "workers": 1}
    return write_shards(source, out, part=Part.parse(part) if part else None, **usual | options)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("expected")
    summary = write(source, out)
    assert sum(len(split.manifest.shards) for split in summary.splits.values()) == SHARDS
    return hashes(out)


@pytest.mark.parametrize("of", [1, 2, 7, SHARDS + 4])
def test_any_number_of_parts_gives_the_same_bytes(
    source: Path, tmp_path: Path, expected: dict[str, str], of: int
) -> None:
    summaries = [write(source, tmp_path, f"{number}/{of}") for number in reversed(range(1, of + 1))]
    assert not list(tmp_path.glob("*/manifest.json"))
    assert sum(summary.written for summary in summaries) == SHARDS
    assert sum(summary.samples for summary in summaries) == COUNT
    assert write(source, tmp_path, finish=True).written == 0
    assert hashes(tmp_path) == expected
    for number in range(1, of + 1):  # a part that is queued again by mistake changes nothing
        assert write(source, tmp_path, f"{number}/{of}").written == 0
    assert hashes(tmp_path) == expected


def test_number_of_parts_may_change_between_runs(source: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    for part in ("2/3", "4/4", "1/2", "5/7"):
        write(source, tmp_path, part)
    with pytest.raises(UserError, match=r"1 of 9 shards missing .*; run --part 2/2, then"):
        write(source, tmp_path, finish=True)
    done = len(list(tmp_path.glob("*/*.index.json")))
    assert write(source, tmp_path).written == SHARDS - done, "a whole run continues parts"
    assert hashes(tmp_path) == expected


@pytest.mark.parametrize("of", [1, 2, 5, 64])
def test_parts_are_balanced_and_cover_all(of: int) -> None:
    """Also where splits are tiny: every part takes its turn through all of them."""
    record = Record("a", "a.jpg")
    tasks = {
        split: [Task(Path(split) / f"{number}", (record,)) for number in range(count)]
        for split, count in (("train", 21), ("validation", 1), ("test", 2))
    }
    shares = [Part(number, of).share(tasks) for number in range(1, of + 1)]
    sizes = [sum(len(shards) for shards in share.values()) for share in shares]
    assert sum(sizes) == 24 and max(sizes) - min(sizes) <= 1
    for split, shards in tasks.items():
        assert {task.path for share in shares for task in share[split]} == {task.path for task in shards}


def test_lost_parts_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no plan\.json, so nothing to finish"):
        write(source, tmp_path / "none", finish=True)
    assert not (tmp_path / "none").exists()
    for part in ("1/4", "3/4"):
        write(source, tmp_path, part)
    with pytest.raises(UserError) as caught:
        write(source, tmp_path, finish=True)
    lost = "train/shard-000001.tar, train/shard-000003.tar, validation/shard-000000.tar, test/shard-000000.tar"
    assert str(caught.value) == (
        f"{tmp_path}: 4 of 9 shards missing ({lost}); run --part 2/4, --part 4/4, then --finish again"
    )
    write(source, tmp_path, "2/4")
    (tmp_path / "train" / "shard-000000.tar").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"run --part 1/4, --part 4/4, then --finish again"):
        write(source, tmp_path, finish=True)
    for damaged in ("{", "[" * 10_000, '{"parts": 0}'):
        (tmp_path / "parts.json").write_text(damaged)
        with pytest.raises(UserError, match="run every --part i/n"):
            write(source, tmp_path, finish=True)
    write(source, tmp_path, "1/1")
    write(source, tmp_path, finish=True)
    assert not (tmp_path / "parts.json").exists()


def test_lock(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LOCK_PATIENCE_SECONDS", 0.0)
    with locked(tmp_path, shared=True):
        write(source, tmp_path, "1/2")
        for finish in (False, True):
            with pytest.raises(UserError, match="another process is writing shards here"):
                write(source, tmp_path, finish=finish)
    with locked(tmp_path, shared=False), pytest.raises(UserError, match="another process is writing shards here"):
        write(source, tmp_path, "2/2")


def test_a_part_removes_only_its_own_leftovers(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path, "1/9")
    (tmp_path / "test").mkdir()
    own = [
        tmp_path / "train" / name
        for name in (".shard-000002-abcdabcd.tmp.tar", ".shard-000002.index-abcdabcd.tmp.json")
    ]
    others = [
        tmp_path / "train" / ".shard-000003-abcdabcd.tmp.tar",
        tmp_path / "train" / ".shard-0000020-abcdabcd.tmp.tar",
        tmp_path / "test" / ".shard-000000.index-abcdabcd.tmp.json",
        tmp_path / ".plan-abcdabcd.tmp.json",
        tmp_path / ".parts-abcdabcd.tmp.json",
        tmp_path / "test" / ".manifest-abcdabcd.tmp.json",
    ]
    for path in own + others:
        path.touch()
    write(source, tmp_path, "3/9")
    assert [path.exists() for path in own + others] == [False] * len(own) + [True] * len(others)
    write(source, tmp_path)
    assert not [path for path in others if path.exists()]


def start_part(gate: Barrier, source: Path, out: Path, part: str, samples_per_shard: int) -> None:
    gate.wait()
    try:
        write(source, out, part, samples_per_shard=samples_per_shard)
    except UserError as error:
        os._exit(2 if "samples_per_shard" in str(error) else 1)
    os._exit(0)


def test_parts_at_the_same_time(source: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    """Of many that start in one moment with two plans, those of one plan go on, the others are refused."""
    context = multiprocessing.get_context("fork")
    for attempt in range(4):
        out = tmp_path / f"{attempt}"
        gate = context.Barrier(6)
        arguments = [(gate, source, out, f"{1 + i // 2}/3", 3 + i % 2) for i in range(6)]
        processes = [context.Process(target=start_part, args=each) for each in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        assert codes in ([0, 2] * 3, [2, 0] * 3), codes
        samples = json.loads((out / "plan.json").read_text())["options"]["samples_per_shard"]
        assert codes[samples - 3] == 0, "who wrote the plan goes on"
        write(source, out, finish=True, samples_per_shard=samples)
        if samples == 3:
            assert hashes(out) == expected
        assert not list(out.rglob(".*"))


def test_file_system_without_links(
    source: Path, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write(source, tmp_path)
    assert hashes(tmp_path) == expected


def test_command(tmp_path: Path) -> None:
    """Also: how many images are rejected counts for a part alone, and in the end for all."""
    root, out = jpegs(tmp_path / "photos", 12), tmp_path / "out"
    for number in (1, 3, 4):
        (root / f"{number:03d}.jpg").write_bytes(b"no picture")
    command = ["shard", root, out, "--split", 0.25, "--samples-per-shard", 3, "--workers", 1, "--max-rejected"]
    latentfuse(*command, 1, "--part", "2/2").assert_one_line("2 images rejected, 1 allowed")
    done = latentfuse(*command, 2, "--part", "2/2").out.splitlines()
    assert done[:2] == [
        f"part 2/2 of train: 1 images in 1 shards (0 new) in {out / 'train'}",
        f"part 2/2 of test: 3 images in 1 shards (0 new) in {out / 'test'}",
    ]
    assert len(done) == 4 and all(line.startswith("rejected 0") for line in done[2:])
    latentfuse(*command, 3, "--finish").assert_one_line("run --part 1/2, then --finish again")
    told = json.loads(latentfuse(*command, 2, "--part", "1/2", "--json").out)
    assert (told["part"], told["written"], told["splits"]["train"]["content_hash"]) == ("1/2", 2, None)
    latentfuse(*command, 2, "--finish").assert_one_line("3 images rejected, 2 allowed")
    assert not list(out.glob("*/manifest.json"))
    told = json.loads(latentfuse(*command, 3, "--finish", "--json").out)
    assert (told["part"], told["samples"]) == (None, 9) and told["splits"]["train"]["content_hash"]
    assert len(load_manifest(out / "train").rejected) == 3


@pytest.mark.parametrize("part", ["0/4", "5/4", "x", "1", "1/0", "-1/4", "1/4/2", "", "1.5/2", "1/٤"])
def test_parts_that_are_none(source: Path, tmp_path: Path, part: str) -> None:
    result = latentfuse("shard", source, tmp_path / "out", f"--part={part}")
    result.assert_one_line(f"--part {part}: i/n with i from 1 to n wanted, as --part 1/4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("out", "--part", "1/2", "--finish"), "--finish alone"),
        (("--index-only", "--part", "1/2"), "leave out --part"),
        (("--index-only", "--finish"), "leave out --finish"),
        (("out", "--index-only"), "leave out out"),
        (("--index-only", "--image-size", "64"), "leave out --image-size"),
        (("--index-only", "--split", "official"), "leave out --split"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(source: Path, arguments: list[str], named: str) -> None:
    latentfuse("shard", source, *arguments).assert_one_line(named)
