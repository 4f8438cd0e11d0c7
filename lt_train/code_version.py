"""Which code this is: the commit of a checkout, or of the snapshot that a job runs."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMIT_FILE, CHANGES_FILE = "commit.txt", "changes.diff"  # of a snapshot, beside the packages
UNKNOWN = "unknown"


def git(root: Path, *arguments: str) -> str:
    """What git says of the checkout in ``root``; nothing if it is none."""
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=root,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def code_version(root: Path = ROOT) -> str:
    """The commit of the package in ``root``, with a word if it differs from that; or UNKNOWN."""
    try:
        commit = (root / COMMIT_FILE).read_text().strip()
        is_changed = bool((root / CHANGES_FILE).read_text().strip())
    except OSError:
        # an installed package may lie in a folder of somebody's repository, which does not track it
        tracked = git(root, "ls-files", "--", "lt_train")
        commit = git(root, "rev-parse", "HEAD").strip() if tracked else ""
        is_changed = bool(commit and git(root, "status", "--porcelain", "--", "lt_train").strip())
    return f"{commit or UNKNOWN}{' with changes' if is_changed else ''}"
