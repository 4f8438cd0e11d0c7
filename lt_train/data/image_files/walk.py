"""What lies in a folder: the images, and what is passed over, which is counted and told."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lt_train.errors import unreadable

# of the formats that check.py takes
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
SYSTEM = {  # what systems leave beside a user's files, in lower case
    *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler", "lost+found"),
    *("system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"),
}
SUFFIX = re.compile(r"(\.tar)?\.[a-z0-9_]{1,12}")
NAMED = 10  # folders, and kinds of files, that a note names


@dataclass
class PassedOver:
    """What a source holds and does not give.

    ``counts``: number by kind, such as ``hidden`` or ``.heic``. ``folders``: whole folders, each
    with the reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)

    def add(self, other: "PassedOver") -> None:
        """Count in what another part of the source has passed over."""
        self.counts += other.counts
        self.folders += other.folders

    def told(self) -> str:
        """``passed over: 3 hidden, 1 __MACOSX``; nothing where there was nothing."""
        kinds = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        words = [f"{number:,} {kind}" for kind, number in kinds[:NAMED]] + self.folders[:NAMED]
        more = len(kinds[NAMED:]) + len(self.folders[NAMED:])
        if more:
            words.append(f"and {more} more kinds and folders")
        return f"passed over: {', '.join(words)}" if words else ""

    def name_folder(self, name: str, why: str) -> None:
        """Say that a whole folder is not taken."""
        shown_name = f"'{name}'" if name.isprintable() else ascii(name)
        self.folders.append(f"folder {shown_name} {why}")

    def after(self, message: str) -> str:
        """A message, with what was passed over behind it."""
        return "; ".join(filter(None, [message, self.told()]))


def is_image(name: str) -> bool:
    """Whether a file's name ends as that of an image does."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_taken(path: str, passed: PassedOver) -> bool:
    """Whether a path within a source (its separator ``/``) is that of an image to take; what is
    not is counted.
    """
    why = next(filter(None, map(_clutter, path.split("/"))), None)
    if why is None and not is_image(path):
        why = _suffix(path)
    if why is not None:
        passed.counts[why] += 1
    return why is None


def listing(folder: str | Path, passed: PassedOver) -> tuple[list[str], list[str]]:
    """Names of the folders in ``folder``, linked ones too, and of its images; both sorted.

    A :class:`UserError`: it cannot be listed.
    """
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                why = _clutter(entry.name)
                if why is not None:
                    passed.counts[why] += 1
                elif _is_folder(entry):
                    if _leads_back(entry, folder):
                        passed.counts["links to a folder around them"] += 1
                    else:
                        folders.append(entry.name)
                elif not os.path.isfile(entry.path) if entry.is_symlink() else not entry.is_file():
                    passed.counts["broken links or special files"] += 1
                elif is_taken(entry.name, passed):
                    images.append(entry.name)
    except OSError as error:
        raise unreadable(error, f"cannot read '{error.filename}': {error.strerror}") from error
    return sorted(folders), sorted(images)


def images_below(folder: str | Path, passed: PassedOver) -> list[str]:
    """All images in ``folder`` and below it, relative to it, sorted.

    Links to folders are followed, after the folders themselves, and no folder is read twice.
    """
    found: list[str] = []
    seen: set[str] = set()
    own, linked = [("", os.path.realpath(folder))], []
    while own or linked:
        here, real = own.pop() if own else linked.pop(0)
        if real in seen:
            passed.counts["links to a folder that is read already"] += 1
            continue
        seen.add(real)
        folders, images = listing(os.path.join(folder, here), passed)
        found += [os.path.join(here, name) for name in images]
        for name in folders:
            inner = os.path.join(here, name)
            place = os.path.join(real, name)
            if os.path.islink(place):
                linked.append((inner, os.path.realpath(place)))
            else:
                own.append((inner, place))
        linked.sort()
    return sorted(found)


def shown() -> str:
    """The suffixes of images, as a message lists them."""
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _clutter(name: str) -> str | None:
    """What a file or folder of this name is counted as, if it is none of the user's."""
    if name.lower() in SYSTEM:
        return name
    return "hidden" if name.startswith(".") and name not in (".", "..") else None


def _suffix(name: str) -> str:
    """What a file that is no image is counted as."""
    base = os.path.basename(name).lower()
    inner, last = os.path.splitext(base)
    suffix = ".tar" + last if inner.endswith(".tar") else last
    return suffix if SUFFIX.fullmatch(suffix) else "files of no known kind"


def _is_folder(entry: os.DirEntry) -> bool:
    # of a link in a circle, is_dir raises an error
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _leads_back(entry: os.DirEntry, folder: str | Path) -> bool:
    """Whether it is a link to a folder that holds the link."""
    if not entry.is_symlink():
        return False
    target = os.path.join(os.path.realpath(entry.path), "")
    return os.path.join(os.path.realpath(folder), "").startswith(target)
