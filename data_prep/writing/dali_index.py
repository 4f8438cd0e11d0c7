"""Index files for DALI's own reader, ``fn.readers.webdataset(paths=..., index_paths=...)``:
train-000000.idx beside each shard.
"""

import os
from pathlib import Path

from lt_train.data.dataset import read_dataset
from lt_train.data.image_files.places import tar_members
from lt_train.errors import unreadable
from lt_train.files import write_atomically

# of the format; v1.2, which DALI's own wds2idx writes, adds names, which then may have no spaces
VERSION = "v1.1"


def write_dali_index(root: Path) -> int:
    """Write the index files that are missing; returns their number."""
    written = 0
    try:
        for split in read_dataset(root).splits.values():
            for shard in split.shards:
                path = (root / shard.name).with_suffix(".idx")
                if not path.is_file():
                    write_atomically(path, _index(root / shard.name).encode())
                    written += 1
    except OSError as error:
        message = f"cannot write an index to '{root}': {error.strerror or error}"
        raise unreadable(error, f"{message}; the same command again goes on from there") from error
    return written


def _index(tar: Path) -> str:
    """A line a sample: extension, offset and size of each of its members."""
    samples: dict[str, list[str]] = {}
    for name, offset, size in tar_members(tar):
        key, extension = os.path.splitext(name)
        samples.setdefault(key, []).append(f"{extension[1:]} {offset} {size}")
    lines = [" ".join(members) for members in samples.values()]
    return "\n".join([f"{VERSION} {len(lines)}", *lines, ""])
