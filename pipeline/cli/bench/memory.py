"""The memory that tensors take, wherever they are: what a GPU's allocator counts, without one."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(held: Iterable[Tensor], run: Callable[[], object]) -> int:
    """The most that tensors take together while `run` runs.

    Args:
        held: the tensors that are there before.
    """
    tracker = _Tracker()
    for tensor in held:
        tracker.add(tensor)
    with tracker:
        run()
    return tracker.peak


class _Tracker(TorchDispatchMode):
    """Counts every storage from the operation that makes it until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def freed(_: object) -> None:
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result
