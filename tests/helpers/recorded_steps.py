"""What a CUDA graph does, on a CPU: the operations of a function on its very tensors, recorded once
and then done again without any of its Python.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

# what has the host wait for a device: none of them can stand in a graph
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}


def name_of(operation) -> str:
    return operation.overloadpacket.__name__


class Recorder(TorchDispatchMode):
    """Keeps every operation with its arguments; ``before``: what tensors from outside held."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._own: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for value in tree_flatten((args, kwargs))[0]:
            if isinstance(value, torch.Tensor) and id(value) not in self._own:
                self.before.setdefault(id(value), (value, value.clone()))
        outputs = operation(*args, **kwargs)
        self.calls.append((operation, args, kwargs, outputs))
        for value in tree_flatten(outputs)[0]:
            if isinstance(value, torch.Tensor) and id(value) not in self.before:
                self._own.add(id(value))
        return outputs

    @property
    def names(self) -> list[str]:
        return [name_of(operation) for operation, *_ in self.calls]


def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """As step_graphs.cuda_graph: nothing has been done yet when it returns; what the function
    returned is filled by every replay.
    """
    with Recorder() as recorder:
        outputs = function()
    assert not WAITING & set(recorder.names)
    for tensor, value in recorder.before.values():
        with torch.no_grad():
            tensor.copy_(value)
    results, shape = tree_flatten(outputs)
    static = [torch.full_like(result, torch.nan) for result in results]

    def replay() -> None:
        made: dict[int, torch.Tensor] = {}

        def now(value):
            return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

        with torch.no_grad():
            for operation, args, kwargs, recorded in recorder.calls:
                found = operation(*tree_map(now, args), **tree_map(now, kwargs))
                for old, new in zip(tree_flatten(recorded)[0], tree_flatten(found)[0]):
                    if isinstance(old, torch.Tensor) and id(old) not in recorder.before:
                        made[id(old)] = new
            for own, result in zip(static, results):
                own.copy_(now(result))

    return replay, tree_unflatten(static, shape)
