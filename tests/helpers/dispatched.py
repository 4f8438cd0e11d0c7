"""What torch is asked to do, call after call."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Dispatched(TorchDispatchMode):
    """Within it, ``calls`` are noted: names of operators, and ``waits``: copies between the host
    and another device for which it waits.

    On the device "meta", which has no values, torch itself refuses whatever would need one on the
    host, as every such call would have to wait for a real device.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        result = function(*arguments, **options)
        self.calls.append(str(function))
        tensors = tree_leaves((arguments, options, result))
        devices = {tensor.device for tensor in tensors if isinstance(tensor, torch.Tensor)}
        # of copy_, the third argument
        blocks = not (options.get("non_blocking") or arguments[2:3] and arguments[2] is True)
        if len(devices) > 1 and blocks:
            self.waits.append(str(function))
        return result
