"""One interface to two ways of training on many ranks: DDP (by accelerate) and DeepSpeed (ZeRO).

Both wrap the same method, average gradients over ranks, and keep batch norm's running statistics
equal on all ranks, so that any rank's state is the run's state.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from lt_train.collectives import on_main
from lt_train.config.schema import Config
from lt_train.data.batch import Batch
from lt_train.distributed import World
from lt_train.methods.base import Method, Outputs, Progress
from lt_train.models.activation_checkpointing import blocks, checkpoint_blocks
from lt_train.models.split_batch_norm import batch_norms
from lt_train.training import zero
from lt_train.training.optim import STATE, hold_lr_on, make_optimizer, set_lr, trained_parameters
from lt_train.training.precision import autocast, dtype_of
from lt_train.training.saved_state import (
    OptimizerState,
    broadcast_optimizer,
    load_state,
    write_state,
)
from lt_train.training.step_graphs import CapturedSteps, captures_steps

NORMS = ("grad_norm", "weight_norm")  # what a step that is measured puts out


def make_engine(config: Config, method: Method, world: World) -> "Engine":
    """The engine that ``config.engine.name`` names; ``method`` is moved to the device to train."""
    method.to(world.device).train()
    if config.engine.activation_checkpointing:
        for encoder in method.encoders():
            checkpoint_blocks(encoder)
    if config.engine.compile:
        for encoder in method.encoders():
            compile_blocks(encoder)
    engines = {"ddp": DDPEngine, "deepspeed": DeepSpeedEngine}
    return engines[config.engine.name](config, method, world)


def compile_blocks(network: nn.Module) -> None:
    """Have torch compile a network's residual or transformer blocks, each by itself.

    The gradients of a compiled module come all at once, at its end: of the network as a whole, none
    would be exchanged while others are computed. Blocks of one kind share the compiled code.
    """
    for block in blocks(network) or [network]:
        block.compile()


class Engine:
    """Forward, backward and step of one method; save and load of all that a resumed run needs."""

    def __init__(self, config: Config, method: Method, world: World):
        self.config, self.method, self.world = config, method, world
        self.dtype = dtype_of(config)
        self.trained = trained_parameters(method)
        self.captures_steps = captures_steps(config, method, world)
        self.captured: CapturedSteps | None = None  # once the loop has begun
        self.measuring = False  # whether steps put out norms
        self._statistics: SharedStatistics | None = None
        self._is_last = True  # of the parts of a batch

    @contextlib.contextmanager
    def accumulating(self, is_last: bool) -> Iterator[None]:
        """Forward and backward of one of the parts of a batch; ranks meet in the last one only."""
        self._is_last = is_last
        yield

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        """The method's outputs for this rank's part of the batch, or a part of that."""
        with self._statistics.counting():
            outputs = self.wrapped(batch, progress)
        if self._is_last:
            self._statistics.start_sync()
        return outputs

    def backward(self, loss: torch.Tensor) -> None:
        raise NotImplementedError

    def set_lr(self, lr: float) -> None:
        """The learning rate of the steps to come."""
        set_lr(self.optimizer, lr)

    def step(self) -> Outputs:
        """One optimizer step, and the gradients are gone; returns the NORMS while ``measuring``.

        Euclidean ones over all that is trained, the same on every rank: of the gradients before
        they are clipped, and of the weights after the step.
        """
        raise NotImplementedError

    def weight_norm(self) -> torch.Tensor:
        """Of all that is trained."""
        return nn.utils.get_total_norm([parameter.detach() for parameter in self.trained])

    def _grad_norm(self) -> torch.Tensor:
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def _norms(self, of_gradients: torch.Tensor | float | None) -> Outputs:
        if not self.measuring:
            return {}
        norm = torch.as_tensor(of_gradients, dtype=torch.float32, device=self.world.device)
        return dict(zip(NORMS, (norm, self.weight_norm())))

    def save(self, folder: Path) -> None:
        """Write the state into ``folder``. Collective: what ranks share out is gathered."""
        optimizer = self._optimizer_state()
        on_main(lambda: write_state(folder, self.method, optimizer))

    def load(self, folder: Path) -> None:
        """Continue from what any engine on any number of ranks has saved. Collective.

        A :class:`UserError` on every rank if it cannot be read or does not fit.
        """
        optimizer = load_state(folder, self.method, STATE[self.config.optim.name])
        self._set_optimizer_state(broadcast_optimizer(optimizer, self.trained))

    def _optimizer_state(self) -> OptimizerState:
        """What the optimizer keeps of each parameter, whole on rank 0 at least. Collective."""
        kept = self.optimizer.state
        return {number: kept[p] for number, p in enumerate(self.trained) if p in kept}

    def _set_optimizer_state(self, state: OptimizerState) -> None:
        # not load_state_dict, which would bring back the settings of the run before as well
        for number, values in state.items():
            self.optimizer.state[self.trained[number]] = values

    def autocast(self) -> torch.autocast:
        """The precision context for running parts of the method outside :meth:`forward`."""
        return autocast(self.config, self.world)


class DDPEngine(Engine):
    """torch's DistributedDataParallel, set up by accelerate; a single process is not wrapped."""

    def __init__(self, config: Config, method: Method, world: World):
        super().__init__(config, method, world)
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state()  # else a process stays with its first engine's precision
        self.accelerator = Accelerator(
            cpu=world.device.type == "cpu",
            mixed_precision="bf16" if self.dtype == torch.bfloat16 else "no",
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
            ],
        )
        method.to(memory_format=torch.channels_last)
        # only the model: a prepared loader may repeat samples, a prepared schedule step once a rank
        self.optimizer = make_optimizer(config.optim, method)
        if self.captures_steps:
            hold_lr_on(self.optimizer, world.device)
        self.wrapped = self.accelerator.prepare_model(method)
        if world.size > 1 and not isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            raise RuntimeError("accelerate did not wrap the method for several ranks")
        if world.size > 1:
            fix_buckets(self.wrapped, self.trained)
        self._statistics = SharedStatistics(method, world)

    @contextlib.contextmanager
    def accumulating(self, is_last: bool) -> Iterator[None]:
        alone = is_last or self.world.size == 1
        apart = contextlib.nullcontext() if alone else self.wrapped.no_sync()
        with super().accumulating(is_last), apart:
            yield

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self) -> Outputs:
        norm, limit = None, self.config.optim.clip_grad_norm
        if limit is not None:
            norm = nn.utils.clip_grad_norm_(self.trained, limit)
        elif self.measuring:
            norm = self._grad_norm()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._statistics.finish_sync()
        return self._norms(norm)


class DeepSpeedEngine(Engine):
    """DeepSpeed, called directly: accelerate's own route falls back to DDP in silence on CPUs."""

    def __init__(self, config: Config, method: Method, world: World):
        super().__init__(config, method, world)
        if world.size == 1 and not dist.is_initialized():
            backend = "gloo" if world.device.type == "cpu" else "nccl"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        if world.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        # weights stay in torch's default layout, which DeepSpeed's flat buffers need; images arrive
        # in channels_last all the same
        with _has_local_rank(world):
            self.wrapped, self.optimizer, _, _ = deepspeed.initialize(
                model=method,
                optimizer=make_optimizer(config.optim, method),
                dist_init_required=False,
                config={
                    # DeepSpeed only derives logging from it; ranks may differ by one sample
                    "train_micro_batch_size_per_gpu": max(
                        1, config.global_batch_size // (world.size * config.engine.accumulate)
                    ),
                    "gradient_accumulation_steps": config.engine.accumulate,
                    "zero_optimization": {"stage": config.engine.zero_stage},
                    "zero_allow_untested_optimizer": True,
                    # parameters stay float32, as with DDP; its own "bf16" mode would round batch
                    # norm and MoCo's queue too
                    "torch_autocast": {
                        "enabled": self.dtype == torch.bfloat16,
                        "dtype": "bfloat16",
                        # else gradients would be summed in bf16; DDP sums them in float32
                        "lower_precision_safe_modules": [],
                    },
                    "gradient_clipping": config.optim.clip_grad_norm or 0.0,
                    "steps_per_print": 10**9,
                },
            )
        self._statistics = SharedStatistics(method, world)

    @contextlib.contextmanager
    def accumulating(self, is_last: bool) -> Iterator[None]:
        with super().accumulating(is_last):
            yield
            if not is_last:
                self.wrapped.step()  # which only counts

    def backward(self, loss: torch.Tensor) -> None:
        self.wrapped.backward(loss, scale_wrt_gas=False)  # parts are weighted already

    def step(self) -> Outputs:
        shared_out = self.config.engine.zero_stage > 0  # gradients, of which each rank has a part
        norm = self._grad_norm() if self.measuring and not shared_out else None
        self.wrapped.step()
        self._statistics.finish_sync()
        if shared_out:
            norm = self.wrapped.get_global_grad_norm()
        return self._norms(norm)

    def _optimizer_state(self) -> OptimizerState:
        if not self.config.engine.zero_stage:
            return super()._optimizer_state()
        return zero.gather_state(self.optimizer, self.trained)

    def _set_optimizer_state(self, state: OptimizerState) -> None:
        if not self.config.engine.zero_stage:
            super()._set_optimizer_state(state)
        else:
            zero.scatter_state(self.optimizer, self.trained, state)


@contextlib.contextmanager
def _has_local_rank(world: World) -> Iterator[None]:
    """LOCAL_RANK, without which DeepSpeed does not start, for a process that no launcher started.

    Only meanwhile: accelerate would take such a process for one of many.
    """
    is_mine = "LOCAL_RANK" not in os.environ
    os.environ.setdefault("LOCAL_RANK", str(world.device.index or 0))
    try:
        yield
    finally:
        if is_mine:
            del os.environ["LOCAL_RANK"]


def fix_buckets(
    wrapped: nn.parallel.DistributedDataParallel, parameters: list[nn.Parameter]
) -> None:
    """Have DDP sum the gradients of every step in one order, from the first on. Collective.

    It sums the first backward pass in one bucket, and all later ones in buckets filled as the
    gradients of the first came in. On three ranks or more another order rounds otherwise, so that a
    resumed run, which has a first pass of its own, would leave its course. That pass is had here,
    without gradients, in the order that DDP itself takes for the likely one: from the last
    parameter to the first.
    """
    method, forward = wrapped.module, vars(wrapped.module).get("forward")

    def touch(_) -> torch.Tensor:
        sums = [parameter.sum() for parameter in parameters]
        return torch.stack(sums).sum() * 0

    method.forward = touch
    wrapped(parameters[0].new_zeros(())).backward()
    del method.forward
    if forward is not None:  # accelerate's, for bf16
        method.forward = forward
    for parameter in parameters:
        parameter.grad = None


class SharedStatistics:
    """Keeps the running statistics of batch norms equal on all ranks: their mean, every step.

    Neither engine does: DDP would copy rank 0's, DeepSpeed leaves each rank its own. The statistics
    become views of one flat tensor, so that this is one small all_reduce without copies, hidden
    behind the backward pass.
    """

    def __init__(self, method: Method, world: World):
        self.ranks, self._work = world.size, None
        norms = batch_norms(method).values()
        norms = [norm for norm in norms if norm.training and norm.running_mean is not None]
        sizes = [norm.num_features for norm in norms]
        total = sum(sizes)
        self.flat = torch.zeros(2 * total, device=world.device)
        means, variances = self.flat.split([total, total])
        for norm, mean, variance in zip(norms, means.split(sizes), variances.split(sizes)):
            # .data: compiled blocks, whose backward pass holds their own statistics, need not be
            # told that others have changed
            norm.running_mean = mean.copy_(norm.running_mean).data
            norm.running_var = variance.copy_(norm.running_var).data

        counting = [norm for norm in norms if norm.momentum is not None]
        self._counters = [(norm._buffers, norm.num_batches_tracked) for norm in counting]

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """A forward pass, which all norms count in one operation, not each in one of its own: where
        they have a momentum, nothing else depends on the number.
        """
        if not self._counters:
            yield
            return
        for buffers, _ in self._counters:
            buffers["num_batches_tracked"] = None
        try:
            yield
        finally:
            for buffers, counter in self._counters:
                buffers["num_batches_tracked"] = counter
        torch._foreach_add_([counter for _, counter in self._counters], 1)

    def start_sync(self) -> None:
        if self.ranks > 1 and len(self.flat):
            self._work = dist.all_reduce(self.flat, async_op=True)

    def finish_sync(self) -> None:
        if self._work is not None:
            self._work.wait()
            self.flat.mul_(1 / self.ranks)
            self._work = None
