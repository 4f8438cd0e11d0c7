"""The code that a job runs is that of its submission: a copy in the run's folder, with the commit
and what differs from it.
"""

import shutil
import subprocess
from pathlib import Path

from lt_train.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("launch", "lt_train", "data_prep", "configs")


def take_snapshot(target: Path) -> str:
    """Copy the packages to ``target``; commit.txt and changes.diff beside them say what they are.

    Returns the commit, or "unknown".
    """
    try:
        for name in PACKAGES:
            shutil.copytree(
                ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        commit = _git("rev-parse", "HEAD").strip() or "unknown"
        (target / "commit.txt").write_text(f"{commit}\n")
        (target / "changes.diff").write_text(
            _git("diff", "HEAD", "--", *PACKAGES)
            + _git("ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
        )
    except OSError as error:
        raise UserError(f"cannot copy the code to {target}: {error.strerror or error}") from error
    return commit


def _git(*arguments: str) -> str:
    """What git says of the checkout; nothing if it is none."""
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
