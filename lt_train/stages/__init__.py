"""One file a method. A stage owns its networks and its loss; the loop, the engines and the loaders know none of it."""

from lt_train.stages.base import Stage
from lt_train.stages.classifier import Classifier
from lt_train.stages.decoupled import Decoupled
from lt_train.stages.experts import Experts
from lt_train.stages.fixmatch import Fixmatch
from lt_train.stages.moco import Moco
from lt_train.stages.proco import Proco
from lt_train.stages.rotation import Rotation
from lt_train.stages.semi import Semi
from lt_train.stages.sourcing import Sourcing

STAGES: dict[str, type[Stage]] = {
    "moco": Moco,
    "rotation": Rotation,
    "classifier": Classifier,
    "decoupled": Decoupled,
    "experts": Experts,
    "proco": Proco,
    "semi": Semi,
    "fixmatch": Fixmatch,
    "sourcing": Sourcing,
}
