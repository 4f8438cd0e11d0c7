"""What a run knows that its own training set did not teach it, which tables tell beside accuracies.

Pre-trained weights of a stranger's images, a text encoder's embeddings, unlabeled images, and
whatever the run that it starts from had of these.
"""

from pathlib import Path

from lt_train.config.checks import CLASS_MEANS
from lt_train.config.schema import Config
from lt_train.run_files import read_result


def outside_data(config: Config, digests: dict[str, str]) -> list[str]:
    """In words, nothing if there is none. Read by rank 0, before training.

    ``digests``: of the run's own data, see data_digests.
    """
    model, found = config.model, []
    if model.init_from and Path(model.init_from).is_dir():
        found += _of_run(Path(model.init_from), digests)
    elif model.init_from:
        found.append(f"weights {Path(model.init_from).name}")
    elif model.pretrained:
        found.append(f"weights of {model.backbone}")
    if config.classifier.init not in (None, CLASS_MEANS):
        found.append(f"class embeddings {Path(config.classifier.init).name}")
    if config.unlabeled.root:
        found.append(f"unlabeled images of {Path(config.unlabeled.root).name}")
    return list(dict.fromkeys(found))


def _of_run(folder: Path, digests: dict[str, str]) -> list[str]:
    result = read_result(folder)
    found = [str(words) for words in result.get("outside_data", [])]
    theirs, own = result.get("data", {}).get("data.root"), digests["data.root"]
    if theirs is not None and theirs != own:
        found.append(f"images of the run {folder.name}")
    return found
