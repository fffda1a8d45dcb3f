"""What this machine can compute on, and how it deals with memory that was freed."""

import ctypes
import os
import shutil

import torch

from pipeline.common.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h: how much free memory goes back to the system, and how many blocks come straight from it."""


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones, which then need no pages from the system.

    Otherwise every large tensor is given back when it is freed, and a CPU spends a tenth to a quarter of a step on page
    faults. For the whole process; where another allocator serves, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def check_device(device: str, precision: str) -> None:
    """Refuse what this machine cannot do.

    Raises:
        UserError: no GPU where one was asked for, a GPU this torch was not built for, or an unsupported precision.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UserError("device: cuda was asked for, but torch sees no GPU here; `latentfuse doctor` says why")
    on_cuda = has_cuda and device != "cpu"
    if precision == "fp16" and not on_cuda:
        raise UserError("training.mixed_precision: fp16 needs a CUDA GPU; use bf16 or no on a CPU")
    if on_cuda:
        problem = unsupported_gpu()
        if problem:
            raise UserError(problem)
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(f"training.mixed_precision: {torch.cuda.get_device_name()} has no bf16; use fp16")


def usable_device(device: torch.device | str) -> torch.device:
    """A device by its name, as `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: if torch does not know it, or there is none here.
    """
    if str(device).startswith("cuda"):
        check_device("cuda", "no")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError):  # each kind of device has its own error
        raise UserError(f"device: {str(device)[:40]}: torch has none of this name here; `cpu` always works") from None


def check_compiler(device: str) -> None:
    """Refuse to compile where torch would find no compiler for what it generates: C++ for a CPU, C for a GPU.

    Raises:
        UserError: there is none on the PATH.
    """
    on_cuda = torch.cuda.is_available() and device != "cpu"
    variable, usual = ("CC", ("gcc", "clang", "cc")) if on_cuda else ("CXX", ("g++",))  # as torch and triton look
    wanted = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(shutil.which(each) for each in wanted):
        raise UserError(
            f"speed.compile: needs a compiler, and {' or '.join(wanted)} is not on the PATH; install one, "
            f"name it in {variable}, or set speed.compile to no"
        )


def slow_precision(device: str, precision: str) -> str | None:
    """Why a precision only costs time here, with the fix; None if it does not.

    A processor without such instructions computes bf16 one number at a time.
    """
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    # A private name: torch has no public one for what its CPU kernels support.
    if precision != "bf16" or not on_cpu or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "training.mixed_precision: this processor has no bf16, and computes it many times as slowly as no; use no"


def unsupported_gpu() -> str | None:
    """Why this build of torch cannot run on the first GPU, with the fix; None if it can, or if there is no GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    built = torch.cuda.get_arch_list()
    # Binaries run on any GPU of the same major architecture and an equal or higher minor one.
    if any(a.startswith("sm_") and int(a[3:-1]) == major and int(a[-1]) <= minor for a in built if a[3:].isdigit()):
        return None
    return (
        f"{torch.cuda.get_device_name()} is sm_{major}{minor}, but torch {torch.__version__} is built for "
        f"{' '.join(built)}; run: pip install 'torch==2.10.0' 'torchvision==0.25.0'"
    )
