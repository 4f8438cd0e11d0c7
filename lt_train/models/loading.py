"""A trained backbone for programs of your own."""

from pathlib import Path

from torch import nn

from lt_train.config.checks import check_backbone
from lt_train.config.families import family_of
from lt_train.config.load import load_config
from lt_train.config.schema import BACKBONES, Config, ModelConfig
from lt_train.errors import UserError
from lt_train.models.backbones import make_backbone
from lt_train.models.tensor_files import FETCH_AGAIN, read_about
from lt_train.models.trainable import restrict
from lt_train.models.weights import load_weights


def load_backbone(
    source: str | Path,
    backbone: str | None = None,
    *,
    size: int | None = None,
    prefix: str | None = None,
) -> nn.Module:
    """A backbone with trained weights, on the CPU and in eval mode: images (B, 3, H, W) to features
    (B, out_features).

    ``source``: a finished run's folder, a file of ``python -m lt_train export``, or any file that
    ``model.init_from`` takes. ``backbone``: the network's name, as ``model.backbone`` has it; runs,
    and files that lt_train has written, tell it themselves. ``size``: of the images in pixels, for
    networks that are made for one; by default what the run, or timm, says. ``prefix``: which
    network of a file with several, as ``model.init_prefix``.

    Attributes: ``out_features``, the width of what it returns; ``mean`` and ``std``, what it
    expects of pixels from 0 to 1, for red, green and blue; ``input_size``, the side in pixels of
    the images that it was evaluated on, or None where nothing says so.

    A :class:`UserError` if there is no such file, if it does not fit the network, or if nothing
    tells which network it is of.
    """
    source, config = Path(source).expanduser(), None
    if (source / "config.yaml").is_file() and backbone is None:
        config = load_config(str(source / "config.yaml"))
        model, input_size = config.model, size or config.eval_view.size
    else:
        name = backbone or _named_in(source)
        check_backbone(name)
        model, published = _as_published(name)
        input_size = size or published
    network = make_backbone(model.backbone, input_size or Config().eval_view.size)
    if config is not None and model.trainable == "adapter":
        restrict([network], config)  # its weights have a place there alone
        network.requires_grad_(True)
    load_weights(network, source, chosen=prefix)
    network.mean, network.std, network.input_size = tuple(model.mean), tuple(model.std), input_size
    return network.eval()


def _named_in(source: Path) -> str:
    """The backbone that a file says it is of."""
    if source.is_dir():
        raise UserError(
            f"'{source}' is not a run: it has no config.yaml; name a finished run or a file"
        )
    if not source.exists():
        raise UserError(f"there is no {source}")
    about = read_about(source, FETCH_AGAIN) if source.suffix == ".safetensors" else {}
    if "backbone" not in about:
        raise UserError(
            f"{source} does not say which network it is of: give load_backbone its name, backbone="
            f"{', '.join(BACKBONES)} or timm/NAME"
        )
    return about["backbone"]


def _as_published(name: str) -> tuple[ModelConfig, int | None]:
    """What a config of a backbone starts from, and the size of its images, if it has one."""
    family = family_of(name)
    if family is None:
        return ModelConfig(backbone=name), None
    module, inner = family
    keys = module.defaults(inner)
    return ModelConfig(backbone=name, **keys["model"]), keys["eval_view"]["size"]
