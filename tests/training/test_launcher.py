"""The launcher's environment: whatever is wrong with it is one line, before anything waits on the network."""

import os
import socket
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from running import Trained, finish, free_port, latentfuse, start, tiny_arguments

from pipeline.common.errors import UserError
from pipeline.training.launcher import Launch, read_launcher
from pipeline.training.opening import advice

RIGHT = {
    **{"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "23456", "ACCELERATE_MIXED_PRECISION": "bf16"},
}
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
NO_NUMBERS = ("", " 1", "-1", "+1", "1_0", "1.0", "one", "٣", "9" * 5000, "1\n2")
WRONG = {
    **{f"RANK={value}": "RANK: " for value in ("2", "9")},
    "LOCAL_RANK=2": "LOCAL_RANK: 2, but WORLD_SIZE is 2",
    "LOCAL_WORLD_SIZE=1": "LOCAL_RANK: 1, but LOCAL_WORLD_SIZE is 1",
    "LOCAL_WORLD_SIZE=3": "LOCAL_WORLD_SIZE: 3 is more than WORLD_SIZE 2",
    "RANK=0": "LOCAL_RANK: 1 is more than RANK 0",
    "WORLD_SIZE=0": "WORLD_SIZE: '0'",
    "MASTER_PORT=0": "MASTER_PORT: '0'",
    "MASTER_PORT=65536": "MASTER_PORT: '65536'",
    "MASTER_ADDR=": "MASTER_ADDR: missing",
    "MASTER_ADDR=no..such": "MASTER_ADDR: 'no..such' is no address",
    "ACCELERATE_MIXED_PRECISION=fp8": "ACCELERATE_MIXED_PRECISION: 'fp8' is not one of no, fp16, bf16",
    "ACCELERATE_USE_CPU=maybe": "neither true nor false",
    "ACCELERATE_USE_FSDP=true": "by DDP alone",
    "ACCELERATE_DYNAMO_BACKEND=inductor": "set speed.compile",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4": "training.micro_batch_size",
    "ACCELERATE_TORCH_DEVICE=cuda:7": "set training.device",
    "OMPI_COMM_WORLD_SIZE=many": "OMPI_COMM_WORLD_SIZE: 'many'",
}


def test_what_launchers_say_is_read() -> None:
    assert read_launcher(RIGHT) == Launch(1, 2, "bf16", "127.0.0.1:23456")
    alone = Launch(0, 1, "no", "")
    assert read_launcher({}) == read_launcher({"RANK": "0", "WORLD_SIZE": "1"}) == alone


@pytest.mark.parametrize(("asked", "wanted_more"), [(1, False), (2, True)])
def test_a_launcher_that_starts_one_process_of_two_is_noticed(asked: int, wanted_more: bool) -> None:
    options = ["--cpu", f"--num_processes={asked}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    arguments = launch_command_parser().parse_args([*options, "--num_cpu_threads_per_process=1", "pipeline"])
    _, environment = prepare_simple_launcher_cmd_env(arguments)
    launch = read_launcher({name: value for name, value in environment.items() if name not in os.environ})
    assert launch == Launch(0, 1, "no", "", wanted_more)
    said = advice(torch.device("cpu"), 1, launch.wanted_more)
    assert bool(said) == wanted_more and "\n" not in said
    assert not advice(torch.device("cpu"), 2, launch.wanted_more), "MPI has started the others"


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_named(wrong: str) -> None:
    name, value = wrong.split("=")
    with pytest.raises(UserError) as caught:
        read_launcher(RIGHT | {name: value})
    assert WRONG[wrong] in str(caught.value)


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_named(name: str) -> None:
    for value in NO_NUMBERS:
        with pytest.raises(UserError) as caught:
            read_launcher(RIGHT | {name: value})
        message = str(caught.value)
        assert message.startswith(f"{name}: ") and "\n" not in message and len(message) < 200


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: missing"):
        read_launcher({key: value for key, value in RIGHT.items() if key != name})


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        first = RIGHT | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}
        with pytest.raises(UserError, match=f"MASTER_PORT: {port}: in use by another program"):
            read_launcher(first)
        assert read_launcher(first | {"TORCHELASTIC_USE_AGENT_STORE": "True"}), "the launcher has it"


def test_a_refused_job_ends_with_one_line(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And status.json tells of it, where there is one; nothing else is left."""
    run = tmp_path / "run"
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ("pretrain", *tiny_arguments(run, trained.shards))
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "9")
        latentfuse(*arguments).assert_one_line("rank 9: RANK: 9, but WORLD_SIZE is 2")
    assert not run.exists()
    run.mkdir()
    (run / ".lock").touch()  # as a run's folder has
    (run / "status.json").write_text('{"state": "finished"}')
    latentfuse(*arguments).assert_one_line("MASTER_ADDR, MASTER_PORT: missing")
    assert '"failed"' in (run / "status.json").read_text()


IMPATIENT = """
from datetime import timedelta
from pipeline.__main__ import main
from pipeline.training import runtime
runtime.COLLECTIVE_PATIENCE = timedelta(seconds=2)
main()
"""


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.faults)])
def test_ranks_that_never_meet_end_with_one_line(trained: Trained, tmp_path: Path, rank: int) -> None:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    arguments = ("pretrain", *tiny_arguments(tmp_path / "run", trained.shards))
    port = str(free_port())
    job = start(*arguments, module=("-c", IMPATIENT), before=(), MASTER_PORT=port, **place)
    finish(job, 60).assert_one_line(f"the 2 ranks did not all meet at 127.0.0.1:{port} within 2 s", code=76)
