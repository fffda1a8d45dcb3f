"""Checkpoints: every bit comes back, damage is found, and something whole is always there."""

import errno
import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import STATE, listing
from safetensors.torch import save_file

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.training import checkpoint

FILES = ("model.safetensors", "optimizers.pt", "state.json", "manifest.json")


def save(folder: Path, step: int, keep: int = 3) -> Path:
    torch.manual_seed(step)
    weights = {
        "autoencoder.a": torch.randn(7, 3),
        "average.a": torch.randn(7, 3),
        "autoencoder.count": torch.tensor(step),
    }
    parameter = torch.nn.Parameter(torch.randn(5))
    adam = torch.optim.Adam([parameter], lr=0.1)
    parameter.grad = torch.randn(5)
    adam.step()
    optimizers = {"autoencoder": adam.state_dict(), "scaler": {}}
    return checkpoint.save(folder, step, weights, optimizers, STATE | {"seed": 3}, keep)


def test_every_bit_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    found = checkpoint.load(path)
    torch.manual_seed(12)
    assert torch.equal(found.weights["autoencoder.a"], torch.randn(7, 3))
    assert found.module("average").keys() == {"a"} and found.module("autoencoder").keys() == {"a", "count"}
    assert found.step == 12 and found.state["seed"] == 3
    moments = found.optimizers["autoencoder"]["state"][0]
    assert moments["exp_avg"].shape == (5,) and moments["exp_avg"].abs().sum() > 0 and moments["step"] == 1
    assert listing(tmp_path) == {"step-00000012", *(f"step-00000012/{name}" for name in FILES)}
    assert len({(path / name).stat().st_mode for name in FILES}) == 1, "whoever may read one may read all"


def test_a_slice_of_a_larger_tensor_is_saved_alone(tmp_path: Path) -> None:
    large = torch.arange(100_000.0).reshape(100, 1000)
    path = checkpoint.save(tmp_path, 1, {"a": large.t()[0]}, {}, STATE, 2)
    assert torch.equal(checkpoint.load(path).weights["a"], large[:, 0])
    assert (path / "model.safetensors").stat().st_size < 2_000


def test_only_the_newest_are_kept_in_order_of_steps(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == checkpoint.newest(tmp_path / "nowhere") == (None, [])
    for step in (5, 90, 100, 1000):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-00000100", "step-00001000"]
    found, passed_over = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1000 and not passed_over


def test_damaged_ones_of_later_steps_take_no_place(tmp_path: Path) -> None:
    """A run that went on before them, with fewer to keep, would be left with none."""
    for step in (2000, 3000, 4000, 2500):
        if step == 2500:
            for later in checkpoint.steps(tmp_path)[1:]:
                (later / "manifest.json").write_text("{}")
        save(tmp_path, step, keep=3 if step > 2500 else 2)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 2500
    assert "step-00002000" in listing(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def sign(path: Path) -> None:
    """Let the manifest tell what is there now."""
    sums = {name: files.sha256(path / name) for name in FILES[:3]}
    (path / "manifest.json").write_text(json.dumps(sums))


DAMAGES: dict[str, Callable[[Path], None]] = {"cut": cut, "flip": flip, "empty": empty, "delete": Path.unlink}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    DAMAGES[damage](path / name)
    with pytest.raises(UserError, match=str(path)):
        checkpoint.load(path)
    found, passed_over = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 10
    assert len(passed_over) == 1 and str(path) in passed_over[0] and "\n" not in passed_over[0]
    assert checkpoint.load(save(tmp_path, 20)).step == 20, "it is replaced when its step is saved again"


@pytest.mark.parametrize("content", ["[]", "{}", "null", "3", '{"model.safetensors": 1}'])
def test_a_manifest_of_another_kind_is_damage(tmp_path: Path, content: str) -> None:
    path = save(tmp_path, 10)
    (path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"damaged"):
        checkpoint.load(path)


def test_all_damaged_is_refused(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(save(tmp_path, step) / "model.safetensors")
    with pytest.raises(UserError, match="no checkpoint verifies") as refused:
        checkpoint.newest(tmp_path)
    assert "step-00000001" in str(refused.value) and "step-00000002" in str(refused.value)


def test_ctrl_c_while_saving_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    before = listing(tmp_path)

    def interrupted(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert listing(tmp_path) == before


def test_a_kill_while_saving_leaves_nothing_that_is_taken_for_a_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    left = tmp_path / ".step-00000002-0123abcd.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    found, passed_over = checkpoint.newest(tmp_path)
    assert found is not None and found.path == path and not passed_over
    save(tmp_path, 2)
    assert left.exists(), "it may be another's; `claimed` knows that it is not"


def test_the_oldest_goes_only_after_the_newest_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save(tmp_path, step, keep=2)
    seen = []
    real = shutil.rmtree

    def watch(path: Path, **options: Any) -> None:
        if path.name == "step-00000001":
            seen.append(checkpoint.load(tmp_path / "step-00000003").step)
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", watch)
    save(tmp_path, 3, keep=2)
    assert seen == [3]


def test_find_by_checkpoint_stage_or_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrained = save(tmp_path / "pretrain" / "checkpoints", 9)
    assert checkpoint.find(tmp_path).path == pretrained == checkpoint.find(pretrained).path
    trained = save(tmp_path / "train" / "checkpoints", 3)
    assert checkpoint.find(tmp_path).path == trained, "the last stage, not the larger step"
    assert checkpoint.find(tmp_path / "pretrain").path == pretrained
    flip(save(tmp_path / "train" / "checkpoints", 4) / "state.json")
    assert checkpoint.find(tmp_path).path == trained and "passed over" in capsys.readouterr().out
    with pytest.raises(UserError, match="no checkpoint here"):
        checkpoint.find(tmp_path / "nowhere")


def test_nothing_executable_is_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    path = save(tmp_path / "c", 1)
    torch.save({"autoencoder": Evil()}, path / "optimizers.pt")
    sign(path)
    with pytest.raises(UserError, match=r"optimizers\.pt: damaged: .*UnpicklingError"):
        checkpoint.load(path)
    assert not (tmp_path / "touched").exists()


def test_a_run_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), checkpoint.claimed(tmp_path / "file"):
        pass


LEFT = (
    *(".config-0123abcd.tmp.yaml", ".status-0123abcd.tmp.json", ".strip-0123abcd.tmp.png"),
    *(".bundle-0123abcd.tmp/", ".bundle-0123abcd.old/", "evaluation/.evaluation-0123abcd.tmp/", "STOP"),
    *("train/checkpoints/.step-00000002-0123abcd.tmp/", "train/checkpoints/.step-00000002-0123abcd.old/"),
    "pretrain/not-finite-step-00000003/.rank0000-0123abcd.tmp.json",
)
KEPT = (
    *(".notes.tmp", ".notes-0123abcd.tmp.txt", ".x.tmp/", ".bundle.tmp/", ".bundle.old/", ".config-20240101.tmp.yaml/"),
    *("train/.mine-0123abcd.tmp.txt", "train/checkpoints/.step-00000002.tmp/", "train/checkpoints/.x-0123abcd.tmp/"),
    *("another/train/checkpoints/.step-00000002-0123abcd.tmp/", "another/.config-0123abcd.tmp.yaml", "another/STOP"),
)


def make(path: Path, name: str) -> Path:
    """A file, or a folder with one where the name ends with a slash."""
    made = path / name
    file = made / "precious" if name.endswith("/") else made
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return made


def test_what_a_killed_job_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    make(run, ".lock")
    left, kept = [make(run, name) for name in LEFT], [make(run, name) for name in KEPT]
    with checkpoint.claimed(run):
        assert [path for path in left if path.exists()] == [] and [path for path in kept if not path.exists()] == []
    for path in left:
        make(elsewhere, str(path.relative_to(run)) + "/")
    shutil.rmtree(run / "pretrain")
    (run / "pretrain").symlink_to(elsewhere / "pretrain")
    for path in left:
        if path.parent.exists() and path.parts[-2] != "not-finite-step-00000003":
            path.symlink_to(elsewhere / path.relative_to(run))
    before = listing(elsewhere)
    with checkpoint.claimed(run):
        assert listing(elsewhere) == before and all(path.exists() for path in left), "no link is followed"


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "strip.png"])
def test_a_folder_with_a_file_of_somebody_else_is_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    (tmp_path / "STOP").touch()
    with (
        pytest.raises(UserError, match=f"run_dir: .* holds {name}, and is no run's folder"),
        checkpoint.claimed(tmp_path),
    ):
        pass
    assert listing(tmp_path) == {name, "STOP"} and (tmp_path / name).read_text() == "precious"
    (tmp_path / name).unlink()
    with checkpoint.claimed(tmp_path):
        (tmp_path / name).touch()
    with checkpoint.claimed(tmp_path):
        assert listing(tmp_path) == {name, ".lock"}, "now it is one, and the STOP was an earlier job's"
    save(tmp_path / "train" / "checkpoints", 1)
    (tmp_path / ".lock").unlink()  # as a copy without hidden files has none
    with checkpoint.claimed(tmp_path):
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["step-00000020", "step-00000005", "step-00000000", "step-100000000"])
def test_a_folder_of_another_name_than_its_step_does_not_count(tmp_path: Path, name: str) -> None:
    """Among them one that would be the newest of all."""
    good, other = save(tmp_path, 10), save(tmp_path, 11)
    for odd in ("step-best", "step-12", "step-²²²²²²²²"):  # the user's
        shutil.copytree(good, tmp_path / odd)
    other.rename(tmp_path / name)
    found, passed_over = checkpoint.newest(tmp_path)
    assert found is not None and found.path == good and all("the folder was renamed" in each for each in passed_over)
    assert checkpoint.find(tmp_path / "step-best").step == 10
    with pytest.raises(UserError, match="holds step 11"):
        checkpoint.find(tmp_path / name)


def zipped(content: bytes, how: int) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with zipfile.ZipFile(path, "w", how) as archive:
            archive.writestr("archive/data.pkl", content)

    return apply


def spoilt(path: Path) -> None:
    save_file({"autoencoder.a": torch.full((7, 3), float("nan"))}, path)


def edited(**values: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


SIGNED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no pickle": ("optimizers.pt", zipped(b"\x80\x02(not one", zipfile.ZIP_STORED)),
    "cut": ("optimizers.pt", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "empty": ("optimizers.pt", empty),
    "text": ("optimizers.pt", lambda path: path.write_text("text")),
    "compressed": ("optimizers.pt", zipped(bytes(2**20), zipfile.ZIP_DEFLATED)),
    "a list": ("optimizers.pt", lambda path: torch.save([1], path)),
    "numbers": ("optimizers.pt", lambda path: torch.save({"autoencoder": 1}, path)),
    "weights cut": ("model.safetensors", cut),
    "weights that are not finite": ("model.safetensors", spoilt),
    "a state of a thousand levels": ("state.json", lambda path: path.write_text("[" * 100_000)),
    "no step": ("state.json", edited(step="20")),
    "half a step": ("state.json", edited(step=True)),
    "no configuration": ("state.json", edited(config=[])),
}


@pytest.mark.parametrize("damage", SIGNED)
def test_what_does_not_load_is_passed_over_even_if_the_manifest_agrees(tmp_path: Path, damage: str) -> None:
    name, apply = SIGNED[damage]
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    apply(path / name)
    sign(path)
    found, passed_over = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 10
    assert len(passed_over) == 1 and str(path / name) in passed_over[0] and "\n" not in passed_over[0]


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 10)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(UserError, match=f"{name}: not a file"):
        checkpoint.load(path)


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with checkpoint.claimed(tmp_path / "run"):
        pass
    said = capsys.readouterr().err
    assert f"{tmp_path / 'run'}: cannot be locked (Function not implemented)" in said and said.count("\n") == 1
