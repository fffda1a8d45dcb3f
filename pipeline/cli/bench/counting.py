"""Floating-point operations, and the memory that tensors take: counted while a program runs, on any device."""

import weakref
from typing import Any

import torch
from torch import Tensor

# A private module, but the only place of this class, which torch's own notes on extending it tell to use.
# The public FlopCounterMode also follows which module runs, and fails at the double backward of D's penalty.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Counter(TorchDispatchMode):
    """Counts what is done within `with counter:`."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0
        """Of matrix products and convolutions, forward and backward; a multiplication and an addition are two."""
        self.bytes = self.peak_bytes = 0
        """Of tensors made since the counter began: those that are alive, and the most that were alive together."""
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=result)
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        """Count the memory of `tensor` until it is freed; views of the same memory count once."""
        storage = tensor.untyped_storage()
        if storage in self._storages:
            return
        self._storages.add(storage)
        self.bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.bytes -= size
