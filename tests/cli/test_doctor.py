"""What `doctor` finds, and that it says how to mend it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from running import Trained, free_port, latentfuse, listing, tiny_arguments, tiny_config

from pipeline.cli import doctor, run_folder
from pipeline.cli.bench import pace
from pipeline.cli.checks import Check
from pipeline.cli.plan import plan


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks alone: what measures asks for `measured`."""
    monkeypatch.setattr(doctor, "plan", lambda _: [])
    monkeypatch.setattr(run_folder, "MIN_FREE_GIB", 0.0)


@pytest.fixture
def measured(_unmeasured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is timed once, however quick it is."""
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    monkeypatch.setattr(doctor, "plan", plan)


@pytest.mark.usefixtures("measured")
def test_all_is_fine(trained: Trained, tmp_path: Path) -> None:
    result = latentfuse("doctor", *tiny_arguments(tmp_path / "run", trained.shards))
    assert result.code == 0 and "FIX" not in result.out
    assert (
        f"torch {torch.__version__.split('+')[0]}" in result.out
        and "10 images" in result.out
        and "4 images" in result.out
    )
    assert listing(tmp_path) == {"tiny.yaml"}, "nothing is left behind"
    for line in ("pretrain", "train", "both stages", "memory", "locks", "clock", "launcher", "batch", "shared memory"):
        assert f"\nok   {line} " in result.out
    assert "4 steps of" in result.out and "as measured here" in result.out


@pytest.mark.usefixtures("measured")
def test_a_plan_of_months_is_called_so_and_refuses_nothing(trained: Trained, tmp_path: Path) -> None:
    long = ("training.pretrain_steps=1000000000", "training.fusion_steps=1000000000")
    result = latentfuse("doctor", *tiny_arguments(tmp_path / "run", trained.shards, *long))
    assert result.code == 0 and "\nnote both stages" in result.out
    assert "-> a plan of " in result.out and "train on GPUs (launch/README.md)" in result.out


def test_what_a_launcher_says(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "plan", lambda _: [Check("train", "measured")])

    def told(**variables: str) -> dict[str, dict[str, str]]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        result = latentfuse("doctor", *tiny_arguments(tmp_path / "run", trained.shards), "--json")
        return {check["what"]: check for check in json.loads(result.out)} if result.out else {}

    alone = told(RANK="0")
    assert "train" in alone and alone["launcher"]["state"] == "none"
    two = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = told(**two)
    assert "rank 0 of 2, which meet at 127.0.0.1" in both["launcher"]["state"]
    assert "a micro_batch_size of 2 would do" in both["batch"]["fix"], "4 images are one micro-batch of one rank"
    assert "train" not in both, "one rank alone would wait for the other"
    assert "MASTER_PORT" in told(MASTER_PORT="none")["launcher"]["fix"]
    assert told(LOCAL_RANK="1") == {}, "one rank of each machine tells"


def test_little_shared_memory(trained: Trained, tmp_path: Path) -> None:
    workers = ("data.workers=1024", "data.image_size=4096", "training.device=cuda")
    result = latentfuse("doctor", *tiny_arguments(tmp_path / "run", trained.shards, *workers), "--json")
    (check,) = [check for check in json.loads(result.out) if check["what"] == "shared memory"]
    assert "786,816 MiB needed by data.workers=1024" in check["state"] and "use fewer (0 need none)" in check["fix"]


def test_names_everything_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    arguments = tiny_arguments(tmp_path / "run", tmp_path / "shards", "perceptual.weights=imagenet")
    result = latentfuse("doctor", *arguments, "--json")
    assert result.code == 2 and not result.errors
    fixes = {check["what"]: check["fix"] for check in json.loads(result.out)}
    assert "shard SOURCE OUT" in fixes["shards, train"] and "shard SOURCE OUT" in fixes["shards, test"]
    assert "latentfuse weights fetch --arch vgg16" in fixes["perceptual weights"]
    assert fixes["versions"] == ""
    text = latentfuse("doctor", *arguments)
    assert text.code == 2 and text.out.count("FIX ") == sum(bool(fix) for fix in fixes.values())


def test_finds_a_shard_that_is_cut(trained: Trained, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(trained.shards, tmp_path / "shards"))
    shard = shards / "train" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    result = latentfuse("doctor", *tiny_arguments(tmp_path / "run", shards))
    assert result.code == 2 and "shard-000001.tar" in result.out
    assert f"latentfuse verify {shards / 'train'}" in result.out


def test_little_room(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "MIN_FREE_GIB", 1e9)
    result = latentfuse("doctor", *tiny_arguments(tmp_path / "run", trained.shards))
    assert result.code == 2 and "free some" in result.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_where_one_is_wanted(trained: Trained, tmp_path: Path) -> None:
    result = latentfuse("doctor", *tiny_arguments(tmp_path / "run", trained.shards, "training.device=cuda"))
    assert result.code == 2 and "no GPU" in result.out


def test_a_gpu_that_this_torch_has_no_kernels_for(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class V100:
        name, major, minor, total_memory = "V100", 7, 0, 32 * 2**30

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda _: V100,
        "get_device_name": lambda: "V100",
        "get_device_capability": lambda: (7, 0),
        "get_arch_list": lambda: ["sm_75", "sm_90"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    checks = doctor.examine(tiny_config(tmp_path / "run", trained.shards, "training.device=auto"))
    fixes = [check.fix for check in checks if check.fix]
    assert any("pip install 'torch==2.10.0'" in fix and "sm_70" in fix for fix in fixes)
    assert any("fp16 and fp32, no bf16" in check.state for check in checks)


def test_a_precision_that_only_costs_time(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = tiny_arguments(tmp_path / "run", trained.shards, "training.mixed_precision=bf16")
    for supported in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported)
        assert ("this processor has no bf16" in latentfuse("doctor", *arguments).out) is not supported
    told = latentfuse("pretrain", *arguments, "--set", "training.pretrain_steps=1")
    assert told.code == 0 and told.out.startswith("training.mixed_precision: this processor has no bf16")


def test_what_a_run_would_be_refused_for(trained: Trained, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(trained.shards, tmp_path / "shards"))
    (tmp_path / "file").touch()
    (tmp_path / "empty.safetensors").touch()

    def fixes(run_dir: Path, *settings: str) -> dict[str, str]:
        result = latentfuse("doctor", *tiny_arguments(run_dir, shards, *settings), "--json")
        found = {check["what"]: check["fix"] for check in json.loads(result.out) if check["fix"]}
        assert result.code == (2 if found else 0)
        return found

    run = tmp_path / "run"
    if not torch.cuda.is_available():
        assert "fp16 needs a CUDA GPU" in fixes(run, "training.mixed_precision=fp16")["precision"]
    assert "set run_dir" in fixes(tmp_path / "file")["disk"]
    damaged = fixes(run, f"perceptual.weights={tmp_path / 'empty.safetensors'}")
    assert "not readable as weights" in damaged["perceptual weights"]
    (index,) = (shards / "test").glob("*.index.json")
    index.write_text("{}")
    assert set(fixes(run)) == {"shards, test"}
    shutil.copytree(trained.shards / "test", shards / "test", dirs_exist_ok=True)
    shutil.rmtree(shards / "train")
    assert set(fixes(run)) == {"shards, train"}
    assert not fixes(run, "data.stream=elsewhere.tar"), "training reads the test split alone"
    shutil.rmtree(shards)
    assert not fixes(run, "data.source=synth"), "`run` makes them"
