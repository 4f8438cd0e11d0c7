"""What the tests of the data sources share: asking for one as the command line does, and files to
make one of.
"""

import argparse
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.reading.source import Source
from data_prep.recipes import RECIPES
from data_prep.writing.plan import make_plan
from data_prep.writing.shards import write
from lt_train.data.image_files.check import DECODED, Checker


def source_of(name: str, *arguments) -> Source:
    """What ``python -m data_prep NAME`` would prepare with these arguments."""
    parser = argparse.ArgumentParser()
    RECIPES[name].add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("name"))
    return RECIPES[name].make_source(parser.parse_args([*map(str, arguments)]))


def prepared(
    source: Source, out: Path, samples_per_shard: int = 100, checker: Checker = DECODED
) -> Path:
    """The folder that ``python -m data_prep`` would write."""
    plan = make_plan(source, out, 0, samples_per_shard, checker)
    write(plan, 1, 0.0, "tests", lambda images, size: None)
    return out


def touch(root: Path, *names: str) -> None:
    """Empty files: sources do not look into them."""
    fill(root, dict.fromkeys(names, b""))


def fill(root: Path, contents: dict[str, bytes]) -> Path:
    """Files of these contents by name; returns ``root``."""
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def copy_files(source: Path, target: Path) -> None:
    """The files of one folder into another, new ones."""
    fill(target, {file.name: file.read_bytes() for file in source.iterdir()})


def tar_of(files: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def samples(source: Source) -> dict[str, dict[str, str]]:
    """Split -> key -> class name."""
    found = {}
    for name, split in source.splits.items():
        classes = [source.classes[label] for label in split.labels]
        found[name] = dict(zip(split.keys, classes))
    return found


def contents(source: Source) -> dict[str, list[tuple[str, int, bytes]]]:
    """Split -> (key, label, bytes) of every sample, in the source's order."""
    found = {}
    for name, split in source.splits.items():
        rows = enumerate(zip(split.keys, split.labels.tolist()))
        found[name] = [(key, label, split.images.read(index)) for index, (key, label) in rows]
    return found


def triples(source: Source, split: str = "train") -> list[tuple[str, int, bytes]]:
    """(key, label, bytes) of a split; of an unlabeled one, the hidden label."""
    part = source.splits[split]
    labels = part.columns["hidden_label"] if part.labels is None else part.labels
    return [
        (key, int(label), part.images.read(index))
        for index, (key, label) in enumerate(zip(part.keys, labels, strict=True))
    ]


def label_files(root: Path) -> list[str]:
    """What the tars of a prepared set hold labels in."""
    found = []
    for path in root.glob("*.tar"):
        with tarfile.open(path) as tar:
            found += [name for name in tar.getnames() if name.endswith(".cls")]
    return found


def pixels_of(content: bytes) -> np.ndarray:
    """(H, W, 3) uint8 of an image file."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class Attack:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def python2_pickle(content: dict[str, np.ndarray | list[int | str]]) -> bytes:
    """As Python 2 and the NumPy of its time wrote dicts with uint8 arrays and lists, byte for byte:
    all text is plain bytes.
    """
    items = b"".join(
        _python2_text(key) + _python2_value(value) + b"s" for key, value in content.items()
    )
    return b"\x80\x02}" + items + b"."


def _python2_value(value: np.ndarray | list[int | str]) -> bytes:
    if isinstance(value, list):
        items = [
            _python2_text(item) if isinstance(item, str) else _python2_int(item) for item in value
        ]
        return b"(" + b"".join(items) + b"l"
    assert value.dtype == np.uint8
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
    dtype = kind + 2 * _python2_int(-1) + b"K\x00tb"
    shape = b"(" + b"".join(map(_python2_int, value.shape)) + b"t"
    content = b"\x89T" + struct.pack("<i", value.size) + value.tobytes()
    return empty + b"(K\x01" + shape + dtype + content + b"tb"


def _python2_text(text: str) -> bytes:
    return b"U" + struct.pack("B", len(text)) + text.encode()


def _python2_int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)
