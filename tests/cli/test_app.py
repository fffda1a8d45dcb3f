"""The command line: quick to start, one line for a mistake, the configuration as YAML."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running import REPOSITORY, latentfuse, listing

import pipeline
from pipeline.cli import app as cli
from pipeline.common.errors import UserError
from pipeline.config import load as config
from pipeline.config.schema import Config

COMMANDS = {
    *("synth", "shard", "verify", "stage", "align", "pretrain", "train"),
    *(
        "evaluate",
        "compare",
        "features",
        "export",
        "fuse",
        "web",
        "play",
        "run",
        "status",
        "doctor",
        "weights",
        "bench",
    ),
}
SCRIPT = Path(sys.executable).with_name("latentfuse")


@pytest.mark.parametrize("how", ["module", "script"])
def test_help_takes_half_a_second_of_a_processor(how: str) -> None:
    if how == "script" and not SCRIPT.exists():
        pytest.skip(f"{SCRIPT} is not installed")
    command = [sys.executable, "-m", "pipeline"] if how == "module" else [str(SCRIPT)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5  # a busy machine changes nothing
    assert all(name in done.stdout for name in COMMANDS)


def test_neither_help_nor_dry_run_imports_torch() -> None:
    code = f"""
import sys
from pipeline.cli.app import main
for arguments in (["--help"], *([name, "--help"] for name in {sorted(COMMANDS)}), ["run", "--dry-run"], ["fuse"]):
    sys.argv = ["latentfuse", *arguments]
    try:
        main()
    except SystemExit:
        pass
    heavy = [name for name in ("torch", "torchvision", "accelerate", "numpy", "PIL") if name in sys.modules]
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_commands_are_those_of_the_contract() -> None:
    names = {str(each.name or each.callback.__name__) for each in cli.app.registered_commands if each.callback}
    assert names | {str(group.name) for group in cli.app.registered_groups} == COMMANDS


@pytest.mark.parametrize("command", [*sorted(COMMANDS), "weights fetch", "bench step", "bench loader"])
def test_every_command_explains_itself(command: str) -> None:
    result = latentfuse(*command.split(), "--help")
    assert result.code == 0 and "Usage:" in result.out and not result.errors
    assert f"Example: latentfuse {command}" in result.out or command in ("weights", "bench")
    assert latentfuse(*command.split(), "-h").out == result.out


def test_version() -> None:
    assert latentfuse("--version").out == f"latentfuse {pipeline.__version__}\n"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("command", ["pretrain", "train", "run"])
def test_dry_run_prints_yaml_that_loads_back(path: Path, command: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = latentfuse(command, "--config", path, "--dry-run", "--set", f"run_dir={folder}", "-s", "seed=7")
    assert result.code == 0 and not result.errors
    resolved = Config.model_validate(yaml.safe_load(result.out))
    assert resolved == config.load(path, [f"run_dir={folder}", "seed=7"]) and resolved.seed == 7
    assert not folder.exists()


def test_dry_run_without_a_file_prints_the_defaults() -> None:
    assert Config.model_validate(yaml.safe_load(latentfuse("train", "--dry-run").out)) == Config()


@pytest.mark.parametrize(
    "arguments",
    [
        ("synth", "out", "--count", "0"),
        ("fuse", "b", "a", "b", "--strip", "x"),
        ("shard", "a", "b", "--quality", "101"),
    ],
    ids=" ".join,
)
def test_an_invalid_option_is_explained(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = latentfuse(*arguments)
    result.assert_one_line("Invalid value for")
    assert not listing(tmp_path)


def test_a_typing_error_is_explained_in_a_line() -> None:
    latentfuse("shardd", "a", "b").assert_one_line("shardd", "Did you mean 'shard'", "latentfuse --help)")
    latentfuse("shard", "a", "--imagesize", "1").assert_one_line("--image-size", "latentfuse shard --help)")
    latentfuse("fuse", "bundle", "a.jpg").assert_one_line("Missing argument", "latentfuse fuse --help)")


def test_without_arguments_help_is_shown() -> None:
    for result in (latentfuse(), latentfuse("weights")):
        assert result.code == 2 and "Usage:" in result.out and not result.errors


@pytest.mark.parametrize(
    ("stop", "code", "line"),
    [
        (UserError("sizes.yaml: a: wrong"), 2, "sizes.yaml: a: wrong"),
        (OSError(28, "No space left on device", "some/file"), 2, "some/file: No space left on device"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
    ids=["mistake", "system", "ctrl-c"],
)
def test_what_ends_a_command_is_one_line(
    stop: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr("pipeline.data.synth.faces.write_faces", fail)
    latentfuse("synth", tmp_path / "out").assert_one_line(line, code=code)


def test_an_invariant_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("pipeline.data.synth.faces.write_faces", fail)
    with pytest.raises(AssertionError, match="a bug"):
        latentfuse("synth", tmp_path / "out")
