"""The code that a job runs is that of its submission: a copy in the run's folder, with the commit
and what differs from it.
"""

import shutil
from pathlib import Path

from lt_train.code_version import CHANGES_FILE, COMMIT_FILE, UNKNOWN, git
from lt_train.config.load import CONFIG_DIR
from lt_train.errors import unreadable

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["launch", "lt_train", "data_prep"]
if CONFIG_DIR.parent == ROOT:  # of an installed package they lie in lt_train
    PACKAGES.append("configs")


def take_snapshot(target: Path) -> str:
    """Copy the packages to ``target``; commit.txt and changes.diff beside them say what they are.

    Returns the commit, or UNKNOWN.
    """
    commit = changes = ""
    # an installed package may lie in a folder of somebody's repository, which does not track it
    if git(ROOT, "ls-files", "--", *PACKAGES):
        commit = git(ROOT, "rev-parse", "HEAD").strip()
        changes = git(ROOT, "diff", "HEAD", "--", *PACKAGES)
        changes += git(ROOT, "ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
    try:
        for name in PACKAGES:
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, target / name, ignore=without)
        (target / COMMIT_FILE).write_text(f"{commit or UNKNOWN}\n")
        (target / CHANGES_FILE).write_text(changes)
    except OSError as error:
        message = f"cannot copy the code to {target}: {error.strerror or error}"
        raise unreadable(error, message) from error
    return commit or UNKNOWN
