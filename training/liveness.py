"""How many bytes of tensors are alive while a piece of code runs, on real or fake tensors."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Alive(TorchDispatchMode):
    """Follows every storage that an operation makes, from its birth to its death; those that were there before count nothing.

    `most` is the largest sum of those alive, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._follow(storage, storage.nbytes())
        return result

    def _follow(self, storage: torch.UntypedStorage, counted: int) -> None:
        name = storage._cdata
        if name in self._known:
            return
        self._known.add(name)
        weakref.finalize(storage, self._died, name, counted)
        self._now += counted
        self.most = max(self.most, self._now)

    def _died(self, name: int, counted: int) -> None:
        self._known.discard(name)
        self._now -= counted
