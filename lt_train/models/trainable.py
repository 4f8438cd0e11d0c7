"""Which part of a backbone is trained beside the head (``model.trainable``), and what follows from
it for files.

What is frozen comes from ``model.init_from`` again when a run goes on, and so is in no checkpoint:
a digest of it is. Without ``model.init_from`` it is random, and checkpoints hold it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from lt_train.config.schema import Config, has_start
from lt_train.errors import UserError
from lt_train.models.adapters import add_adapters
from lt_train.models.lora import UPDATES, add_lora, merged_weights
from lt_train.models.split_batch_norm import batch_norms
from lt_train.models.tensor_files import Tensors, tensors_digest

BASE_LAYER = ".base_layer."  # in the names of what peft and our adapters wrap
ADAPTER = ".mlp.adapter."  # in the names of what plain backbones have no place for


@dataclass(frozen=True)
class Restriction:
    """What :func:`restrict` notes on a network, as its ``restriction``."""

    kind: str  # model.trainable
    left_out: frozenset[str] = frozenset()  # names in its state that no checkpoint holds
    digest: str | None = None  # of these, on the network that starting weights went to


def restrict(networks: Iterable[nn.Module], config: Config) -> None:
    """Of backbones, have only what ``model.trainable`` names be trained; in place.

    To be called when starting weights are in. A network of which nothing was trained before, since
    it follows another one, gets the same parts, and still nothing of it is trained. A
    :class:`UserError` if there is no such part.
    """
    if config.model.trainable == "all":
        return
    for network in networks:
        follows = not any(each.requires_grad for each in network.parameters())
        network.requires_grad_(False)
        for parameter in _part(network, config):
            parameter.requires_grad_(True)
        network.restriction = _restriction(network, config, follows)
        if follows:
            network.requires_grad_(False)


def hold_still(module: nn.Module) -> None:
    """Of the restricted networks in ``module``, keep what training must not change in evaluation.

    That is batch norm with its statistics; where only the head is trained, everything.
    """
    for network, restriction in _restricted(module).values():
        whole = restriction.kind == "head"
        for still in [network] if whole else batch_norms(network).values():
            still.eval()


def kept_state(module: nn.Module) -> Tensors:
    """The state that a checkpoint holds: without what comes from ``model.init_from`` again."""
    left_out = _left_out(module)
    return {name: each for name, each in module.state_dict().items() if name not in left_out}


def load_kept_state(module: nn.Module, state: Tensors, digest: str | None) -> None:
    """Load what :func:`kept_state` gave, when :func:`frozen_digest` was ``digest``.

    A :class:`UserError` if other weights are frozen now; what does not fit raises as in
    ``load_state_dict``.
    """
    if digest is not None and frozen_digest(module) not in (None, digest):
        raise UserError(
            "the weights of model.init_from have changed since the run began: give it those that "
            "it began with, or choose another run.dir"
        )
    whole = module.state_dict()
    frozen = {name: whole[name] for name in _left_out(module)}
    module.load_state_dict({**frozen, **state})


def frozen_digest(module: nn.Module) -> str | None:
    """sha256 of what checkpoints leave out; None if they leave out nothing."""
    digests = [restriction.digest for _, restriction in _restricted(module).values()]
    return next((digest for digest in digests if digest), None)


def plain_names(state: Tensors) -> Tensors:
    """A state by the names of the plain backbone, without LoRA's updates."""
    plain = [name for name in state if UPDATES not in name]
    return {name.replace(BASE_LAYER, "."): state[name] for name in plain}


def plain_state(module: nn.Module) -> Tensors:
    """A state by the names of the plain backbone, with LoRA's updates merged into the weights.

    Adapters, which cannot be merged, stand beside.
    """
    return plain_names(module.state_dict()) | merged_weights(module)


def _part(network: nn.Module, config: Config) -> list[nn.Parameter]:
    """The parameters of a network that are trained; updates and adapters are made."""
    kind, name = config.model.trainable, config.model.backbone
    if kind == "head":
        return []
    if kind == "lora":
        return add_lora(network, config)
    if kind == "adapter":
        return add_adapters(network, config.adapter, name)
    part = _norms(network) if kind == "norm" else _biases(network)
    if not part:
        missing = {"norm": "weights of normalisation layers", "bias": "biases"}[kind]
        raise UserError(f"model.trainable={kind}: {name} has no {missing}; use head or lora")
    return part


def _norms(network: nn.Module) -> list[nn.Parameter]:
    """Of layers that call themselves norms: libraries have kinds of their own beside torch's."""
    found = []
    for module in network.modules():
        if "norm" in type(module).__name__.lower():
            found += module.parameters(recurse=False)
    return found


def _biases(network: nn.Module) -> list[nn.Parameter]:
    return [each for name, each in network.named_parameters() if name.endswith("bias")]


def _restriction(network: nn.Module, config: Config, follows: bool) -> Restriction:
    kind = config.model.trainable
    if not has_start(config.model):
        return Restriction(kind)
    frozen = {name for name, each in network.named_parameters() if not each.requires_grad}
    for path, norm in batch_norms(network).items():
        frozen |= {f"{path}.{name}" for name, _ in norm.named_buffers(recurse=False)}
    state = network.state_dict()
    frozen &= state.keys()
    if follows:  # with weights that are not in yet
        return Restriction(kind, frozenset(frozen))
    digest = tensors_digest(plain_names({name: state[name] for name in frozen}))
    return Restriction(kind, frozenset(frozen), digest)


def _restricted(module: nn.Module) -> dict[str, tuple[nn.Module, Restriction]]:
    """The restricted networks in ``module``, by their paths."""
    found = {}
    for path, network in module.named_modules():
        if (restriction := getattr(network, "restriction", None)) is not None:
            found[path] = network, restriction
    return found


def _left_out(module: nn.Module) -> set[str]:
    names = set()
    for path, (_, restriction) in _restricted(module).items():
        prefix = f"{path}." if path else ""
        names |= {prefix + name for name in restriction.left_out}
    return names
