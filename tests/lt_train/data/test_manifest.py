"""The on-disk format: written and read back, damage found and named, read by other tools too."""

import io
import logging
import os
import pickle
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from PIL import Image

from lt_train.data import spool
from lt_train.data.dataset import Dataset, Split, read_dataset, write_dataset
from lt_train.data.manifest import Manifest, shot_groups
from lt_train.data.tables import (
    MANIFEST_SCHEMA,
    UNLABELED,
    add_columns,
    open_tables,
    write_manifest,
)
from lt_train.errors import UserError
from tests.helpers.sealed import rewrite

SHARD = "train-000001.tar"  # the second of three


@pytest.fixture
def copy(small, damaged_copy) -> Path:
    """The small data set, to be damaged by a test."""
    return damaged_copy(small.root)


def test_every_row_is_read_back(small):
    manifest = Manifest(small.root, "train")
    order = [int(manifest.key(sample_id)) for sample_id in range(len(manifest))]
    assert sorted(order) == list(range(23))
    np.testing.assert_array_equal(manifest.labels, small.labels[order])
    assert set(manifest.widths) == set(manifest.heights) == {32}
    pixels = [Image.open(io.BytesIO(manifest.read(sample_id))) for sample_id in range(23)]
    np.testing.assert_array_equal(pixels, small.pixels[order])
    assert manifest.bytes == sum(len(manifest.read(sample_id)) for sample_id in range(23))
    assert not manifest.bad


def test_class_index_groups_the_samples_by_class(small):
    manifest = Manifest(small.root, "train")
    assert manifest.class_counts.tolist() == [12, 6, 3, 2]
    assert read_dataset(small.root).splits["train"].class_counts == [12, 6, 3, 2]
    offsets = manifest.class_offsets
    for label in range(4):
        members = manifest.class_ids[offsets[label] : offsets[label + 1]]
        np.testing.assert_array_equal(members, np.flatnonzero(manifest.labels == label))


def test_classes_without_samples_and_empty_splits_are_kept(prepare, photos):
    root = prepare({"train": ([photos["square"]] * 2, [1, 1]), "val": ([], [])}, classes=3)
    assert Manifest(root, "train").class_counts.tolist() == [0, 2, 0]
    val = Manifest(root, "val")
    assert len(val) == 0 and val.class_counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_webdataset_reads_the_same_samples(demo_root, split):
    manifest = Manifest(demo_root, split)
    urls = [str(demo_root / shard.name) for shard in manifest.shards]
    assert len(urls) > 1
    found, ids = list(webdataset.WebDataset(urls, shardshuffle=False)), range(len(manifest))
    assert [sample["__key__"] for sample in found] == list(map(manifest.key, ids))
    assert [int(sample["cls"]) for sample in found] == manifest.labels.tolist()
    contents = [manifest.read(sample_id).tobytes() for sample_id in ids]
    assert [sample["jpg"] for sample in found] == contents


def test_a_damaged_image_is_found_and_named(small, damaged_copy, caplog):
    manifest = Manifest(damaged_copy(small.root, [5]), "train")
    with caplog.at_level(logging.WARNING):
        readable = [sample_id for sample_id in range(23) if manifest.read(sample_id) is not None]
        assert manifest.read(5) is None, "also the second time"
    assert readable == [sample_id for sample_id in range(23) if sample_id != 5]
    assert list(manifest.bad) == [5] and "crc32" in manifest.bad[5]
    assert manifest.key(5) in caplog.text and ".tar" in caplog.text
    assert len(caplog.records) == 1


def test_a_damaged_sample_is_replaced_by_the_next_of_its_class(small, damaged_copy):
    members = np.flatnonzero(Manifest(small.root, "train").labels == 1).tolist()
    bad = [members[1], members[2], members[-1]]
    root = damaged_copy(small.root, bad)
    expected = {members[1]: members[3], members[2]: members[3], members[-1]: members[0]}
    for order in (bad, bad[::-1]):  # whatever was read before
        manifest = Manifest(root, "train")
        for sample_id in order:
            replacement, content = manifest.read_or_replace(sample_id)
            assert replacement == expected[sample_id]
            assert content.tobytes() == manifest.read(replacement).tobytes()


def test_an_intact_sample_is_not_replaced(small):
    manifest = Manifest(small.root, "train")
    ids = range(len(manifest))
    assert [manifest.read_or_replace(sample_id)[0] for sample_id in ids] == list(ids)


def test_a_class_with_nothing_intact_is_named(small, damaged_copy):
    members = np.flatnonzero(Manifest(small.root, "train").labels == 3).tolist()
    root = damaged_copy(small.root, members)
    with pytest.raises(UserError, match="class_3.*damaged"):
        Manifest(root, "train").read_or_replace(members[0])


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_shard_loses_only_what_is_missing(copy, keep):
    shard = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(shard[: int(keep * len(shard))])
    intact, manifest = Manifest(copy, "val"), Manifest(copy, "train")
    assert all(intact.read(sample_id) is not None for sample_id in range(len(intact)))
    lost = [sample_id for sample_id in range(len(manifest)) if manifest.read(sample_id) is None]
    assert {manifest.bad[sample_id] for sample_id in lost} == {"the shard is truncated"}
    shard_of = pa.ipc.open_file((copy / "train.arrow").read_bytes()).read_all()["shard"].to_numpy()
    in_shard = np.flatnonzero(shard_of == 1).tolist()
    assert lost == in_shard[-len(lost) :]
    assert len(lost) == len(in_shard) if keep == 0 else 0 < len(lost) < len(in_shard)


def test_a_missing_shard_is_a_user_error_that_names_it(copy):
    (copy / SHARD).unlink()
    manifest = Manifest(copy, "train")
    with pytest.raises(UserError, match=SHARD):
        for sample_id in range(len(manifest)):
            manifest.read(sample_id)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "dataset.json").unlink(), "no dataset.json"),
        (lambda root: shutil.rmtree(root), "no such folder"),
        (lambda root: (root / "dataset.json").write_text('{"name": "s'), "dataset.json is damaged"),
        (lambda root: (root / "dataset.json").write_text("[]"), "dataset.json is damaged"),
        (lambda root: (root / "train.arrow").unlink(), "train.arrow"),
        (lambda root: (root / "train.arrow").write_bytes(b"ARROW1"), "train.arrow"),
        (lambda root: (root / "train.class_index.arrow").unlink(), "train.class_index.arrow"),
    ],
)
def test_what_a_folder_lacks_is_a_user_error_that_names_it(copy, break_it, message):
    break_it(copy)
    with pytest.raises(UserError, match=message):
        Manifest(copy, "train")


def test_a_manifest_that_has_been_read_from_can_be_sent_to_another_process(small):
    manifest = Manifest(small.root, "train")
    contents = [bytes(manifest.read(sample_id)) for sample_id in range(23)]
    for part in (manifest, manifest.subset(slice(3, 9))):
        other = pickle.loads(pickle.dumps(part))
        assert [other.key(index) for index in range(len(other))] == list(
            map(part.key, range(len(part)))
        )
        assert other.class_ids.tolist() == part.class_ids.tolist()
    other = pickle.loads(pickle.dumps(manifest))
    assert [bytes(other.read(sample_id)) for sample_id in range(23)] == contents


def test_what_is_truncated_after_it_was_read_is_damaged_then(copy):
    manifest = Manifest(copy, "train")
    assert manifest.read(22) is not None
    shard = manifest.paths[int(manifest.places(np.array([22]))[0, 0])]
    os.truncate(shard, 512)
    assert manifest.read(22) is None and manifest.bad == {22: "the shard is truncated"}


def test_an_unknown_split_names_those_there_are(small):
    with pytest.raises(UserError, match="no split 'valid'; it has train, val, test"):
        Manifest(small.root, "valid")


def test_a_newer_format_is_refused(copy):
    rewrite(copy / "dataset.json", lambda content: content.update(format_version=2))
    with pytest.raises(UserError, match="newer version"):
        read_dataset(copy)


# writing a manifest table by table

MORE_COLUMNS = [
    ("sourced_label", pa.int32()),
    ("score", pa.float32()),
    ("source", pa.string()),
]
SCHEMA = pa.schema([*MANIFEST_SCHEMA, *MORE_COLUMNS])
LETTERS = ["", "a", "ö", "写真", "🐈", "x" * 70_000]


def tables(sizes: Sequence[int], labels: int = 5) -> Iterator[pa.Table]:
    """Rows that differ in every column; some labels are UNLABELED, keys and sources have several
    alphabets, or nothing in them.
    """
    generator, letters = np.random.default_rng(0), len(LETTERS)
    for number, size in enumerate(sizes):
        keys = [f"{number}/{row}{LETTERS[(number + row) % letters]}" for row in range(size)]
        columns = {
            "key": keys,
            "label": generator.integers(UNLABELED, labels, size),
            "score": generator.random(size),
            "source": [LETTERS[(number * row) % letters] for row in range(size)],
        }
        for name in SCHEMA.names:
            if name not in columns:
                columns[name] = generator.integers(0, 2**31, size)
        arrays = [pa.array(columns[field.name]).cast(field.type) for field in SCHEMA]
        yield pa.table(arrays, SCHEMA)


@pytest.mark.parametrize("sizes", [[1, 0, 3, 17, 0, 0, 2], [0], [0, 0], [], [40], [1] * 30])
def test_a_manifest_of_many_tables_is_one_batch_and_equal_to_all_of_them(tmp_path, sizes):
    counts = write_manifest(tmp_path, "train", tables(sizes), SCHEMA, 5)
    expected = pa.concat_tables([SCHEMA.empty_table(), *tables(sizes)])
    with pa.ipc.open_file(tmp_path / "train.arrow") as file:
        assert file.num_record_batches == 1
        table = file.read_all()
    table.validate(full=True)
    assert table.equals(expected) and table.schema.equals(SCHEMA) and len(table) == sum(sizes)
    labels = expected["label"].to_numpy()
    assert counts == np.bincount(labels[labels >= 0], minlength=5).tolist()
    with pa.ipc.open_file(tmp_path / "train.class_index.arrow") as file:
        index = file.read_all()["sample_ids"]
    assert index.to_pylist() == [np.flatnonzero(labels == label).tolist() for label in range(5)]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["train.arrow", "train.class_index.arrow"]


@pytest.mark.parametrize("limit", [0, 20, 60])
def test_more_text_than_32_bits_number_is_written_and_read(limit, tmp_path, monkeypatch):
    """The limit is 2 GiB; with a lower one it is passed at once, within or after a table."""
    sizes = [2, 0, 7, 5]
    whole = pa.concat_tables(tables(sizes))
    text = len("".join(whole["key"].to_pylist()).encode())
    assert limit < text
    monkeypatch.setattr(spool, "LARGEST_OFFSET", limit)
    counts = write_manifest(tmp_path, "train", tables(sizes), SCHEMA, 5)
    found = open_tables(tmp_path, "train").manifest
    assert found["key"].type == pa.large_string() and found.cast(SCHEMA).equals(whole)
    write_dataset(tmp_path, Dataset("set", list("abcde"), {"train": Split(14, counts, [])}))
    add_columns(tmp_path, "train", {"more": pa.array(range(14))}, "tests")
    again = open_tables(tmp_path, "train").manifest
    assert again.drop(["more"]).equals(found)
    monkeypatch.setattr(spool, "LARGEST_OFFSET", text)
    write_manifest(tmp_path, "train", tables(sizes), SCHEMA, 5)
    assert open_tables(tmp_path, "train").manifest["key"].type == pa.string(), "which just fits"


def test_a_manifest_without_a_class_has_an_empty_class_index(tmp_path):
    assert write_manifest(tmp_path, "train", tables([3, 4], labels=0), SCHEMA, 0) == []
    with pa.ipc.open_file(tmp_path / "train.class_index.arrow") as file:
        assert file.read_all()["sample_ids"].to_pylist() == []


def test_an_error_between_two_tables_leaves_no_file(tmp_path):
    def broken() -> Iterator[pa.Table]:
        yield from tables([3])
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_manifest(tmp_path, "train", broken(), SCHEMA, 5)
    assert not list(tmp_path.iterdir())


# samples without a label, and parts of a data set

MIXED = [1, UNLABELED, 0, UNLABELED, UNLABELED, 0, 1, 0, UNLABELED, 0]


@pytest.fixture(scope="module")
def ten_images(small) -> list[bytes]:
    manifest = Manifest(small.root, "train")
    return [manifest.read(sample_id).tobytes() for sample_id in range(10)]


@pytest.fixture(scope="module")
def mixed(prepare, ten_images) -> Path:
    """Ten images in shards of three; four have no label."""
    return prepare({"train": (ten_images, MIXED)}, classes=2, samples_per_shard=3)


def sample_ids(manifest: Manifest, label: int) -> list[int]:
    return np.flatnonzero(manifest.labels == label).tolist()


def test_unlabeled_samples_are_in_no_class(mixed):
    manifest = Manifest(mixed, "train")
    assert sorted(manifest.labels.tolist()) == sorted(MIXED)
    assert manifest.class_counts.tolist() == [4, 2]
    assert read_dataset(mixed).splits["train"].class_counts == [4, 2]
    assert manifest.class_ids.tolist() == sample_ids(manifest, 0) + sample_ids(manifest, 1)
    tars = [str(mixed / shard.name) for shard in manifest.shards]
    found = list(webdataset.WebDataset(tars, shardshuffle=False))
    labels = {sample["__key__"]: int(sample.get("cls", UNLABELED)) for sample in found}
    expected = {f"{index:05d}": label for index, label in enumerate(MIXED)}
    assert labels == expected, "and have no .cls member"


ROWS = [slice(2, 7), slice(0, 0), slice(5, None), np.array([8, 0, 3]), np.array([], np.int64)]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_a_subset_counts_its_samples_from_0(mixed, rows):
    whole, part = Manifest(mixed, "train"), Manifest(mixed, "train").subset(rows)
    chosen = np.arange(10)[rows].tolist()
    assert len(part) == len(chosen)
    assert list(map(part.key, range(len(part)))) == list(map(whole.key, chosen))
    np.testing.assert_array_equal(part.labels, whole.labels[chosen])
    np.testing.assert_array_equal(part.column("offset"), whole.column("offset")[chosen])
    contents = [part.read(index).tobytes() for index in range(len(part))]
    assert contents == [whole.read(index).tobytes() for index in chosen]
    assert part.class_counts.tolist() == [len(sample_ids(part, label)) for label in range(2)]
    assert part.class_ids.tolist() == sample_ids(part, 0) + sample_ids(part, 1)
    assert part.bytes == sum(len(whole.read(index)) for index in chosen)
    assert part.classes == whole.classes and len(whole) == 10


def test_a_subset_replaces_by_its_own_samples(mixed, damaged_copy):
    """Class 0 has four samples; the subset has its last three, the first of which is damaged."""
    first, bad, second, third = sample_ids(Manifest(mixed, "train"), 0)
    whole = Manifest(damaged_copy(mixed, [bad]), "train")
    assert whole.read(bad) is None
    part = whole.subset(np.array([third, bad, second]))
    assert not part.bad, "what was found bad elsewhere has other sample ids"
    assert part.read_or_replace(1)[0] == 2 and part.read_or_replace(0)[0] == 0
    assert list(part.bad) == [1] and list(whole.bad) == [bad]


@pytest.fixture(scope="module")
def pool(prepare, ten_images) -> Path:
    """Ten images without labels in shards of three."""
    return prepare({"train": (ten_images, [UNLABELED] * 10)}, classes=2, samples_per_shard=3)


def test_who_stands_in_is_looked_up_once_somebody_must(mixed, damaged_copy):
    """A class index of millions is made for no intact sample, large images are read alone."""
    bad, other = sample_ids(Manifest(mixed, "train"), 0)[:2]
    part = Manifest(damaged_copy(mixed, [bad]), "train").subset(np.arange(10))
    read, asked = part._files.read, []
    part._files.read = lambda *place: asked.append(place[-1]) or read(*place)
    part.read_or_replace(other)
    assert "class_ids" not in vars(part)
    assert part.read_or_replace(bad)[0] == other and "class_ids" in vars(part)
    part.read(other)
    assert asked == [True, True, True, False]


class Hesitant(dict):
    """Time passes between a look at it and what is done about it."""

    def __contains__(self, key: int) -> bool:
        found = super().__contains__(key)
        time.sleep(0.01)
        return found


def test_threads_that_meet_a_damaged_sample_at_once_name_it_once(small, caplog):
    manifest = Manifest(small.root, "train")
    manifest.bad = Hesitant()
    together = threading.Barrier(4)

    def meet(_thread: int) -> None:
        together.wait(30)
        manifest.count_bad(5, "it does not decode")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(meet, range(4)))
    assert sum("bad sample" in record.message for record in caplog.records) == 1


def test_a_damaged_sample_without_a_label_is_replaced_by_the_next_one(pool, damaged_copy):
    manifest = Manifest(damaged_copy(pool, [0, 4, 5, 9]), "train")
    for sample_id, expected in {4: 6, 5: 6, 9: 1, 0: 1, 3: 3}.items():
        replacement, content = manifest.read_or_replace(sample_id)
        assert replacement == expected and content.tobytes() == manifest.read(expected).tobytes()
    assert sorted(manifest.bad) == [0, 4, 5, 9]


def test_a_pool_with_nothing_intact_is_named(pool, damaged_copy):
    manifest = Manifest(damaged_copy(pool, range(10)), "train")
    with pytest.raises(UserError, match="every sample in .* is damaged"):
        manifest.read_or_replace(7)


def test_shot_groups_are_those_of_the_literature():
    """More than 100 training images, 20 to 100, fewer than 20 (Liu et al. 2019)."""
    groups = shot_groups(np.array([500, 101, 100, 20, 19, 0]))
    members = {name: np.flatnonzero(own).tolist() for name, own in groups.items()}
    assert members == {"many_shot": [0, 1], "medium_shot": [2, 3], "few_shot": [4, 5]}


def test_a_rejected_sample_is_read_no_more_and_a_counted_one_is(small, caplog):
    """Both are named once, and read_or_replace passes over what it is told to."""
    manifest = Manifest(small.root, "train")
    members = np.flatnonzero(manifest.labels == 1).tolist()
    for _ in range(2):
        manifest.reject(members[0], "it does not decode")
        manifest.count_bad(members[1], "a part does not decode")
    assert manifest.bad.keys() == {members[0], members[1]}
    assert sum("bad sample" in record.message for record in caplog.records) == 2
    assert manifest.read(members[0]) is None and manifest.read(members[1]) is not None
    assert manifest.read_or_replace(members[0])[0] == members[1]
    assert manifest.read_or_replace(members[1])[0] == members[1]
    assert manifest.read_or_replace(members[0], members[1:3])[0] == members[3]
    with pytest.raises(UserError, match="every sample of class 'class_1'"):
        manifest.read_or_replace(members[0], members)
