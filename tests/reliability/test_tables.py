"""What lies beside the shards is damaged at random, or another's: each time it is refused, or
nothing that is read changes.

``LT_TRAIN_TRIALS`` asks for more trials, ``LT_TRAIN_SEED`` for others.
"""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.inspect import problems
from lt_train.data.manifest import Manifest
from lt_train.errors import UserError
from tests.helpers.damage import DAMAGES
from tests.helpers.early_version import forget_checksums
from tests.helpers.trials import SEED, trials

TRIALS = trials(100)
FILES = ("train.arrow", "train.class_index.arrow", "dataset.json", "train-000001.tar")


def all_of(root: Path) -> tuple:
    """Everything that a training reads of a split."""
    manifest = Manifest(root, "train")
    ids = range(len(manifest))
    contents = [manifest.read(sample_id) for sample_id in ids]
    for sample_id, content in enumerate(contents):
        if content is None:  # said in the log, and another is taken
            raise UserError(manifest.bad[sample_id])
    columns = [manifest.column(name).tolist() for name in manifest.columns]
    index = manifest.class_ids.tolist(), manifest.class_offsets.tolist()
    return [content.tobytes() for content in contents], columns, index, manifest.dataset


def replace_file(path: Path, content: bytes) -> None:
    """As a new file: the one before may still be mapped."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("file", FILES)
def test_damage_is_refused_or_changes_nothing(file, small, damaged_copy):
    """What a training does not read, headers of tars and .cls members, ``verify`` does."""
    root = damaged_copy(small.root)
    expected, content, draw = all_of(root), (root / file).read_bytes(), random.Random(SEED)
    refused = 0
    for trial in range(TRIALS):
        damage = draw.choice(DAMAGES)
        damaged = damage(content, draw)
        replace_file(root / file, damaged)
        what = f"SEED={SEED}, trial {trial}: {damage.__name__} of {file}"
        try:
            assert all_of(root) == expected, what
        except UserError as error:
            refused += 1
            lines = ("damaged", "crc32", "truncated", str(root))
            assert any(words in str(error) for words in lines), what
        if file.endswith(".tar") and damaged != content:
            assert any(file in problem for problem in problems(root)), what
    assert refused > TRIALS * (0.9 if file.endswith(".arrow") else 0.25)


@pytest.mark.parametrize("file", FILES)
def test_the_file_of_another_set_is_refused(file, small, damaged_copy, prepare, photos):
    other = prepare({"train": ([photos["square"]] * 6, [0, 0, 1, 2, 2, 2])}, classes=3)
    root = damaged_copy(small.root)
    theirs = other / file if (other / file).exists() else root / "train-000000.tar"
    replace_file(root / file, theirs.read_bytes())
    with pytest.raises(UserError):
        all_of(root)


@pytest.mark.parametrize("file", FILES[:2])
def test_without_checksums_a_flipped_bit_never_ends_the_process(file, small, damaged_copy):
    """As in sets of early versions: what is in range may be wrong, but is read or refused."""
    root = damaged_copy(small.root)
    forget_checksums(root)
    content, rng = (root / file).read_bytes(), random.Random(SEED)
    for _ in range(TRIALS):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        replace_file(root / file, damaged)
        try:
            manifest = Manifest(root, "train")
            keys = [manifest.key(index) for index in range(len(manifest))]
            read = [manifest.read_or_replace(index) for index in range(len(manifest))]
        except UserError as error:
            assert str(root) in str(error)
        else:
            assert len(keys) == len(read) == 23


def test_the_class_index_of_another_split_is_refused(prepare, photos, tmp_path):
    splits = {"train": ([photos["square"]] * 6, [0, 0, 1, 2, 2, 2]), "val": ([], [])}
    root = Path(shutil.copytree(prepare(splits, classes=3), tmp_path / "set"))
    shutil.copy(root / "val.class_index.arrow", root / "train.class_index.arrow")
    with pytest.raises(UserError, match="train.class_index.arrow is not as it was written"):
        Manifest(root, "train")
    forget_checksums(root)
    with pytest.raises(UserError, match="train.class_index.arrow does not agree with train.arrow"):
        Manifest(root, "train")


def test_a_hundred_changed_labels_are_refused(demo_root, tmp_path):
    """In the very bytes, so that nothing else of the table changes."""
    root = Path(shutil.copytree(demo_root, tmp_path / "set"))
    labels = Manifest(root, "train").labels.copy()
    content = (root / "train.arrow").read_bytes()
    assert content.count(labels.tobytes()) == 1
    changed = labels.copy()
    changed[:100] = (labels[:100] + 1) % (labels.max() + 1)
    replace_file(root / "train.arrow", content.replace(labels.tobytes(), changed.tobytes()))
    with pytest.raises(UserError, match="train.arrow is not as it was written"):
        Manifest(root, "train")
    forget_checksums(root)
    with pytest.raises(UserError, match="class counts|does not agree"):
        Manifest(root, "train")
    swapped = labels.copy()  # the counts stay
    swapped[[0, np.flatnonzero(labels != labels[0])[0]]] = [
        labels[labels != labels[0]][0],
        labels[0],
    ]
    replace_file(root / "train.arrow", content.replace(labels.tobytes(), swapped.tobytes()))
    with pytest.raises(UserError, match="train.class_index.arrow does not agree"):
        Manifest(root, "train")
    assert len(list(problems(root))) == 1
