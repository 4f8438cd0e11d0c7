"""When gradients are exchanged, and in what type."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lt_train.config.schema import Config, EngineConfig, ModelConfig
from lt_train.distributed import World
from lt_train.training.engine import make_engine
from lt_train.training.loop import training_steps
from lt_train.training.optim import Schedule
from tests.helpers.ranks import run_on_ranks
from tests.helpers.small_methods import new_method, progress_of, random_batch

pytestmark = pytest.mark.slow

CONFIG = Config(global_batch_size=6, model=ModelConfig("resnet32_cifar"))
ENGINES = {
    "ddp": EngineConfig("ddp", precision="bf16"),
    **{f"ZeRO {stage}": EngineConfig("deepspeed", stage, "bf16") for stage in (0, 1, 2)},
}


def test_a_compiled_backbone_has_the_loss_and_the_gradients_block_by_block(monkeypatch):
    """None of the first block's is there when the last block's are: DDP sends these meanwhile."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(  # all that torch.compile does, but for code of its own
        torch.nn.Module, "compile", lambda block: compile_module(block, backend="aot_eager")
    )
    found, seen = {}, []
    for is_compiled in (False, True):
        config = replace(CONFIG, engine=EngineConfig(precision="fp32", compile=is_compiled))
        engine = make_engine(config, new_method(config), World())
        stages = engine.method.backbone
        first, last = stages.layer1[0].conv1.weight, stages.layer3[-1].conv2.weight
        last.register_post_accumulate_grad_hook(lambda _, other=first: seen.append(other.grad))
        loss = engine.forward(random_batch(0), progress_of(engine.method, 0))["loss"]
        engine.backward(loss)
        found[is_compiled] = [loss, *(parameter.grad for parameter in engine.trained)]
    assert seen == [None, None]
    torch.testing.assert_close(found[True], found[False], rtol=1e-3, atol=1e-4)


class SummedTypes(TorchDispatchMode):
    """Floating types of all that ranks sum up."""

    def __init__(self):
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.types |= {each.dtype for each in tensors if each.is_floating_point()}
        return operation(*args, **(kwargs or {}))


def types_in_bf16(world: World) -> dict[str, set[torch.dtype]]:
    found = {}
    for name, chosen in ENGINES.items():
        config = replace(CONFIG, engine=chosen)
        engine = make_engine(config, new_method(config), world)
        with SummedTypes() as summed:
            list(training_steps(engine, [random_batch(0, 3)], Schedule(config, 90), 0))
        found[name] = summed.types
    return found


def test_gradients_computed_in_bf16_are_summed_in_float32_by_all_engines():
    assert run_on_ranks(2, types_in_bf16) == [dict.fromkeys(ENGINES, {torch.float32})] * 2
