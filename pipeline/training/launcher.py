"""The environment that a launcher gives each rank: read and checked here, before anything waits on the network."""

import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.common.errors import UserError

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What every rank of a job of several is told."""
ALONE = ("MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION")
"""What `accelerate launch` tells a process that it starts alone, if it was asked for several."""
MPI = (
    *("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_RANK"),
    *("MV2_COMM_WORLD_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    *("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
)
"""What accelerate reads on CPUs where the others are missing."""
PRECISIONS = ("no", "fp16", "bf16")
YES, NO = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")
FLAGS = ("ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY", "FORK_LAUNCHED")
UNSUPPORTED = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "SAGEMAKER", "PARALLELISM_CONFIG")
"""Other ways to distribute, as in ACCELERATE_USE_FSDP."""
MOST_RANKS = 100_000
SHOWN = 40
"""Characters of a bad value that a message shows."""


@dataclass(frozen=True)
class Launch:
    """What the launcher says. `precision` is no, fp16 or bf16; the ranks meet at `address`, a host and port."""

    rank: int
    world_size: int
    precision: str
    address: str
    wanted_more: bool = False
    """Whether `accelerate launch` was asked for several processes and started this one alone, as with `--cpu`."""


def read_launcher(environment: Mapping[str, str] = os.environ) -> Launch:
    """The launcher's environment, checked.

    Raises:
        UserError: naming a variable that is missing, is no such number, or contradicts another; or, on rank 0, a port
            that another program uses.
    """
    precision = _accelerate(environment)
    for name in MPI:
        _number(environment, name, 0, MOST_RANKS)
    world_size = _number(environment, "WORLD_SIZE", 1, MOST_RANKS)
    rank = _number(environment, "RANK", 0, MOST_RANKS)
    local_rank = _number(environment, "LOCAL_RANK", 0, MOST_RANKS)
    local_world_size = _number(environment, "LOCAL_WORLD_SIZE", 1, MOST_RANKS)
    if not rank and local_rank is None and world_size in (None, 1):
        # accelerate names the place where ranks meet, and starts one that has no number.
        return Launch(0, 1, precision, "", rank is None and all(environment.get(name) for name in ALONE))
    if rank is not None and world_size is not None:
        _below("RANK", rank, "WORLD_SIZE", world_size)
    missing = [name for name in PLACE if not environment.get(name)]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: missing, but other variables of a launcher are set; "
            f"each rank needs {', '.join(PLACE)}, a process alone none of them"
        )
    assert rank is not None and local_rank is not None and world_size is not None, "none is missing"
    _below("LOCAL_RANK", local_rank, "WORLD_SIZE", world_size)
    if local_rank > rank:
        raise UserError(f"LOCAL_RANK: {local_rank} is more than RANK {rank}; ranks of a machine are numbered from 0")
    if local_world_size is not None:
        if local_world_size > world_size:
            raise UserError(f"LOCAL_WORLD_SIZE: {local_world_size} is more than WORLD_SIZE {world_size}")
        _below("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_world_size)
    host, port = environment["MASTER_ADDR"], _number(environment, "MASTER_PORT", 1, 65535)
    assert port is not None, "not missing"
    _check_address(host, port)
    # Under torchrun, and so under `accelerate launch`, the launcher itself has the port.
    if rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        _check_port(port)
    return Launch(rank, world_size, precision, f"{host}:{port}")


def _accelerate(environment: Mapping[str, str]) -> str:
    """The precision that accelerate was told, once the rest of what it was told is checked."""
    for name in FLAGS:
        value = environment.get(name, "no").lower()
        if value not in YES + NO:
            raise UserError(f"{name}: {_shown(value)} is neither true nor false")
    for name in (f"ACCELERATE_USE_{way}" for way in UNSUPPORTED):
        if environment.get(name, "false").lower() not in NO:
            raise UserError(f"{name}: {_shown(environment[name])}, but ranks share gradients by DDP alone; unset it")
    if (backend := environment.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        raise UserError(f"ACCELERATE_DYNAMO_BACKEND: {_shown(backend)}; unset it, and set speed.compile to compile")
    if (steps := environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise UserError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS: {_shown(steps)}; unset it: training.global_batch_size and "
            "training.micro_batch_size say how gradients are added up"
        )
    if "ACCELERATE_TORCH_DEVICE" in environment:
        device = _shown(environment["ACCELERATE_TORCH_DEVICE"])
        raise UserError(f"ACCELERATE_TORCH_DEVICE: {device}; unset it, and set training.device")
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in PRECISIONS:
        raise UserError(f"ACCELERATE_MIXED_PRECISION: {_shown(precision)} is not one of {', '.join(PRECISIONS)}")
    return precision


def _number(environment: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    """None where it is not set."""
    value = environment.get(name)
    if value is None:
        return None
    # Not all that `int` takes is a number to those who read it next.
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and low <= int(value) <= high):
        raise UserError(f"{name}: {_shown(value)} is not a whole number from {low} to {high}")
    return int(value)


def _below(name: str, value: int, size_name: str, size: int) -> None:
    if value >= size:
        raise UserError(f"{name}: {value}, but {size_name} is {size}, so it is at most {size - 1}")


def _check_address(host: str, port: int) -> None:
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # ValueError: a name with a NUL or an empty label
        raise UserError(f"MASTER_ADDR: {_shown(host)} is no address that this machine can find") from None


def _check_port(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
            listener.listen(1)
        except OSError as error:
            why = "in use by another program" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            raise UserError(f"MASTER_PORT: {port}: {why}; set another, the same on every rank") from None


def _shown(value: str) -> str:
    return repr(value if len(value) <= SHOWN else value[:SHOWN] + "...")
