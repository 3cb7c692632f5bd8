"""Count the bytes of tensors while they live."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import is_traceable_wrapper_subclass, TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Around a block: the bytes of all tensors that its operations make, until they are freed.

    Tensors on `meta` are not counted, unless `device` is "meta": then they alone are.

    A tensor of before the block counts from the first operation that returns it, unless it is among those
    that are `free`, such as weights.  What a kernel takes for itself is not seen.

    now      bytes that live
    peak     the most that lived at once
    history  `now` after every operation
    """

    def __init__(self, free: Iterable[Tensor] = (), device: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meta = device == "meta"
        self.now = self.peak = 0
        self.history = list[int]()
        self._sizes = dict[int, int]()
        for tensor in free:
            for storage in _storages(tensor):
                self._add(storage, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.is_meta == self._meta:
                for storage in _storages(value):
                    self._add(storage, storage.nbytes())
        self.peak = max(self.peak, self.now)
        self.history.append(self.now)
        return out

    def _add(self, storage: UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = size
            self.now += size
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _storages(tensor: Tensor) -> Iterator[UntypedStorage]:
    """The memory of a tensor; of one that is made of others, such as torchao's, theirs."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor.untyped_storage()
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _storages(getattr(tensor, name))
