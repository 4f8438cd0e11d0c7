"""What a new classifier starts from: ``classifier.init``."""

import logging
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.collectives import from_main
from lt_train.config.checks import CLASS_MEANS
from lt_train.data.run_data import RunData, check_bad_samples
from lt_train.errors import UserError
from lt_train.methods.base import Method
from lt_train.methods.metrics import class_means
from lt_train.models.heads import CosineClassifier, start_from_prototypes
from lt_train.models.tensor_files import AbsentFile, read_safetensors
from lt_train.training.precision import autocast

log = logging.getLogger(__name__)


def start_classifier(method: Method, data: RunData) -> None:
    """Fill the classifiers of a new run's method, on the device, as ``classifier.init`` says.

    A :class:`UserError` for a method whose classifier is none of
    :func:`lt_train.models.heads.make_classifier`. Collective.
    """
    config = method.config.classifier
    if config.init is None:
        return
    classifiers = method.starting_classifiers()
    if not all(isinstance(each, nn.Linear | CosineClassifier) for each in classifiers):
        raise UserError(
            f"classifier.init starts a linear or cosine classifier of the backbone's features, and "
            f"that of the method {method.config.method} is none: unset it"
        )
    if config.init == CLASS_MEANS:
        prototypes, known = _class_means(method, data, on_sphere=config.head == "cosine")
    else:
        path, classes = Path(config.init), data.train_set.classes
        width = method.backbone.out_features
        prototypes = from_main(lambda: read_prototypes(path, classes, width)).to(data.world.device)
        known = torch.ones_like(prototypes[:, 0], dtype=torch.bool)
        log.info("classifier: starts from the %d embeddings in %s", len(classes), path)
    for classifier in classifiers:
        start_from_prototypes(classifier, prototypes, known)


@torch.no_grad()
def _class_means(
    method: Method, data: RunData, on_sphere: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (C, D) of the features of the training split, seen as in evaluation; and of which
    classes there are any (C,).

    ``on_sphere``: features are normalised first.
    """
    backbone, train, device = method.backbone, data.train_set, data.world.device
    classes = train.num_classes

    def embed(images: torch.Tensor) -> torch.Tensor:
        features = backbone(images).float()
        return F.normalize(features, dim=1) if on_sphere else features

    method.eval()
    with autocast(data.config, data.world):
        images = data.evaluate(train.split)
        means, counts = class_means(embed, images, backbone.out_features, classes, device)
    method.train()
    labeled = int(train.class_counts.sum())
    check_bad_samples(labeled - int(counts.sum()), train, data.config.data.max_bad_share)
    known = counts > 0
    empty = int((~known).sum())
    others = f"; {empty} without images keep random weights" if empty else ""
    log.info("classifier: starts from the means of %d classes%s", classes - empty, others)
    return means, known


def read_prototypes(path: Path, classes: list[str], width: int) -> torch.Tensor:
    """An embedding of each class, (C, ``width``) float32, of a safetensors file.

    It holds one tensor, with a row a class in the order of ``classes``, or a tensor of ``width``
    numbers under the name of each class. A :class:`UserError` for anything else.
    """
    where = f"classifier.init: {path}"
    try:
        tensors, _ = read_safetensors(path)
    except AbsentFile as error:
        raise UserError(f"classifier.init: {error}") from error
    if len(tensors) == 1:
        (rows,) = tensors.values()
    else:
        rows = _by_name(tensors, classes, width, where)
    if rows.shape != (len(classes), width):
        raise UserError(
            f"{where} holds a tensor of {tuple(rows.shape)}; {len(classes)} classes and "
            f"model.backbone want ({len(classes)}, {width})"
        )
    if not rows.is_floating_point():
        raise UserError(f"{where} holds {rows.dtype} numbers, which are no embeddings")
    rows = rows.float()
    wrong = ~rows.isfinite().all(1) | (rows == 0).all(1)
    if wrong.any():
        name = classes[int(wrong.nonzero()[0])]
        raise UserError(f"{where}: the embedding of class '{name}' is zero or not finite")
    return rows


def _by_name(
    tensors: dict[str, torch.Tensor], classes: list[str], width: int, where: str
) -> torch.Tensor:
    missing = [name for name in classes if name not in tensors]
    unknown = sorted(tensors.keys() - set(classes))
    if missing or unknown:
        kinds = (("without", missing), ("unknown:", unknown))
        shown = "; ".join(f"{what} '{names[0]}'" for what, names in kinds if names)
        raise UserError(
            f"{where} holds {len(tensors)} tensors, which are not one for each of the "
            f"{len(classes)} classes ({len(missing)} missing, {len(unknown)} unknown; {shown})"
        )
    for name in classes:
        if tensors[name].shape != (width,):
            raise UserError(
                f"{where}: the tensor of class '{name}' is of {tuple(tensors[name].shape)}, "
                f"model.backbone has features of ({width},)"
            )
    return torch.stack([tensors[name] for name in classes])
