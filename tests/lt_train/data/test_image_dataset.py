"""A prepared set for PyTorch's DataLoader: pixels, labels, pickles and processes."""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import lt_train.data
from lt_train.data.decoder import Decoder
from lt_train.data.image_dataset import ImageDataset
from lt_train.data.manifest import Manifest
from lt_train.errors import UserError
from tests.helpers.sources import pixels_of


@pytest.fixture
def dataset(small) -> ImageDataset:
    """Whose images are arrays, (32, 32, 3) uint8."""
    return lt_train.data.torch_dataset(small.root, "train", np.array)


def originals(dataset: ImageDataset) -> list[int]:
    """Each sample's number in the sequence that was prepared."""
    return [int(dataset.key(index)) for index in range(len(dataset))]


def assert_all_read(dataset: ImageDataset, small, loader: DataLoader) -> None:
    """Whatever reads it, every sample comes once, in order and as it was prepared."""
    images, labels = (torch.cat(parts).numpy() for parts in zip(*loader))
    order = originals(dataset)
    np.testing.assert_array_equal(images, small.pixels[order])
    np.testing.assert_array_equal(labels, small.labels[order])


def test_samples_are_images_in_rgb_with_their_labels(small):
    dataset = lt_train.data.torch_dataset(str(small.root), "train")
    order = originals(dataset)
    assert sorted(order) == list(range(23)) == list(range(len(dataset)))
    for index, original in enumerate(order):
        image, label = dataset[index]
        assert isinstance(image, Image.Image) and image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), small.pixels[original])
        assert type(label) is int and label == small.labels[original]


def test_it_tells_classes_counts_and_targets(dataset, small):
    assert dataset.classes == [f"class_{label}" for label in range(4)]
    assert dataset.class_to_idx == {f"class_{label}": label for label in range(4)}
    assert dataset.class_counts.tolist() == [12, 6, 3, 2]
    np.testing.assert_array_equal(dataset.targets, small.labels[originals(dataset)])


def test_pixels_are_those_that_training_decodes(photo_root, photos):
    """Grey and progressive ones too, and one with an EXIF rotation, which nobody applies."""
    dataset, manifest = ImageDataset(photo_root, "train"), Manifest(photo_root, "train")
    decoded = Decoder(16)([manifest.read(index) for index in range(len(dataset))])
    contents = list(photos.values())
    for index, theirs in enumerate(decoded):
        ours = np.asarray(dataset[index][0])
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(ours, pixels_of(contents[int(dataset.key(index))]))


def test_indices_are_those_of_a_sequence(dataset):
    last, label = dataset[22]
    for index in (-1, np.int64(22), torch.tensor(22)):
        assert np.array_equal(dataset[index][0], last) and dataset[index][1] == label
    for index in (23, -24):
        with pytest.raises(IndexError):
            dataset[index]
    with pytest.raises(TypeError):
        dataset[1.0]
    assert len(list(dataset)) == 23


def test_an_unlabeled_set_has_labels_of_minus_one(pool):
    dataset = ImageDataset(pool, "train")
    assert dataset.classes == [] and dataset.class_counts.tolist() == []
    assert {dataset[index][1] for index in range(len(dataset))} == {-1} == {*dataset.targets}


def test_a_pickle_is_small_and_the_same_before_and_after_reading(dataset):
    fresh = pickle.dumps(dataset)
    first = dataset[0]
    used = pickle.dumps(dataset)
    assert used == fresh and len(fresh) < 1000
    for content in (fresh, used):
        again = pickle.loads(content)
        assert len(again) == 23 and again[0][1] == first[1]
        np.testing.assert_array_equal(again[0][0], first[0])


def test_tables_that_were_cut_since_are_refused_when_a_pickle_is_loaded(small, damaged_copy):
    root = damaged_copy(small.root)
    content = pickle.dumps(ImageDataset(root, "train"))
    table = root / "train.arrow"
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read .*train.arrow"):
        pickle.loads(content)


def test_threads_read_at_once(dataset, small):
    order = originals(dataset) * 20
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: dataset[index][0], list(range(23)) * 20))
    np.testing.assert_array_equal(found, small.pixels[order])


def test_forked_workers_read_files_that_their_parent_has_opened(dataset, small):
    assert len(list(dataset)) == 23  # all shards are open now, and go on from nowhere
    loader = DataLoader(dataset, 3, num_workers=2, multiprocessing_context="fork")
    assert_all_read(dataset, small, loader)


@pytest.mark.slow
def test_a_spawned_worker_opens_the_set_itself(dataset, small):
    dataset[0]
    loader = DataLoader(dataset, 3, num_workers=1, multiprocessing_context="spawn")
    assert_all_read(dataset, small, loader)


def test_a_damaged_sample_is_named(small, damaged_copy):
    dataset = ImageDataset(damaged_copy(small.root, [4]), "train")
    message = f"sample {dataset.key(4)} of {dataset.root}/train (sample_id 4) cannot be used: its"
    for _ in range(2):
        with pytest.raises(UserError, match=re.escape(message)):
            dataset[4]
    assert dataset[3][1] == dataset.targets[3]


def test_what_does_not_decode_is_named_and_a_fault_of_the_transform_is_its_own(dataset, small):
    broken = ImageDataset(small.root, "train", len)
    with pytest.raises(TypeError):
        broken[0]
    whole = dataset._manifest.read
    dataset._manifest.read = lambda sample_id: whole(sample_id)[:-30]
    with pytest.raises(UserError, match="cannot be used: it does not decode: "):
        dataset[0]


@pytest.mark.parametrize(
    ("root", "split", "message"),
    [
        ("s3://bucket/set", "train", "s3://bucket/set is a URL, .* copy the set to a local disk"),
        ("nowhere", "train", "'nowhere' is not a prepared data set"),
        (None, "tran", "has no split 'tran'; it has train, val, test"),
    ],
)
def test_what_is_not_there_is_one_line(small, root, split, message):
    with pytest.raises(UserError, match=message):
        ImageDataset(root or small.root, split)
