"""Unlabeled sets of the training images that a labeled CIFAR leaves."""

import numpy as np
import pytest

from data_prep.reading.subsets import imbalanced_counts, unlabeled_counts
from data_prep.sets.cifar import CIFAR10_CLASSES
from lt_train.errors import UserError
from tests.helpers.sources import fill, pixels_of, source_of, touch, triples
from tests.helpers.stand_ins import assert_no_label_shows

LAYOUTS = ["official", "folders"]
LABELED = ("--imbalance-ratio", 5, "--largest", 10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        LABELED,
        ("--imbalance-ratio", 8, "--largest", 40),
        (*LABELED, "--imbalance-type", "step"),
        (*LABELED, "--seed", 3),
    ],
    ids=str,
)
def test_the_labeled_set_and_all_the_rest_are_the_training_images(cifar, layout, options):
    root = cifar["cifar10"][layout]
    labeled = triples(source_of("cifar10_lt", "--source", root, *options))
    rest = triples(source_of("unlabeled_cifar10", "--pool", root, "--all", *options))
    whole = ("--imbalance-ratio", 1, "--largest", 40)
    every = triples(source_of("cifar10_lt", "--source", root, *whole))
    assert sorted(labeled + rest) == sorted(every)
    keys, _, images = zip(*every)
    assert len(set(keys)) == len(set(images)) == 400
    kind = "step" if "step" in options else "exp"
    assert len(rest) == 400 - sum(imbalanced_counts(options[3], 10, options[1], kind))


def test_the_rest_is_the_same_from_folders_under_the_usual_names(cifar, tmp_path):
    folders = cifar["cifar10"]["folders"]
    (tmp_path / "Training").symlink_to(folders / "train")
    (tmp_path / "testing").symlink_to(folders / "test")
    for name, option in (("unlabeled_cifar10", "--pool"), ("cifar10_lt", "--source")):
        more = [] if option == "--source" else ["--all"]
        found = triples(source_of(name, option, tmp_path, *more, *LABELED))
        assert found == triples(source_of(name, option, folders, *more, *LABELED))
    touch(tmp_path, "train/airplane/1.png")
    with pytest.raises(UserError, match="two folders for the split 'train'"):
        source_of("cifar10_lt", "--source", tmp_path, *LABELED)


@pytest.mark.parametrize("unlabeled_ratio", [1, 5])
def test_d_u_of_the_rest_has_its_counts_and_nothing_of_the_labeled_set(
    cifar, tmp_path, unlabeled_ratio
):
    root = cifar["cifar10"]["official"]
    labeled = triples(source_of("cifar10_lt", "--source", root, *LABELED))
    options = ("--imbalance-ratio-unlabeled", unlabeled_ratio, "--size-factor", 3)
    source = source_of("unlabeled_cifar10", "--pool", root, *LABELED, *options)
    drawn = triples(source)
    assert (source.name, source.classes) == ("unlabeled_cifar10", CIFAR10_CLASSES)
    counts = unlabeled_counts(len(labeled), 10, unlabeled_ratio, 3)
    assert np.bincount([label for _, label, _ in drawn]).tolist() == counts
    assert 0 <= 3 * len(labeled) - sum(counts) < 10
    for which in (0, 2):  # keys, bytes
        found = {row[which] for row in drawn}
        assert len(found) == len(drawn)
        assert not found & {row[which] for row in labeled}
    every = triples(source_of("unlabeled_cifar10", "--pool", root, "--all", *LABELED))
    assert set(drawn) <= set(every)
    manifest = assert_no_label_shows(source, tmp_path / "out")
    hidden = manifest.column("hidden_label").tolist()
    found = {
        (manifest.key(index), label, bytes(manifest.read(index)))
        for index, label in enumerate(hidden)
    }
    assert len(hidden) == len(manifest) and found == set(drawn)


def test_d_u_of_the_rest_is_the_same_in_both_layouts(cifar):
    official, folders = (
        triples(source_of("unlabeled_cifar10", "--pool", root, *LABELED, "--size-factor", 2))
        for root in cifar["cifar10"].values()
    )
    for one, other in zip(official, folders, strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_array_equal(pixels_of(one[2]), pixels_of(other[2]))


def test_d_u_of_the_rest_follows_from_the_seed(cifar):
    options = ("--pool", cifar["cifar10"]["official"], *LABELED, "--size-factor", 2, "--seed")
    first, again, other = (
        triples(source_of("unlabeled_cifar10", *options, seed)) for seed in (0, 0, 1)
    )
    assert first == again and set(first) != set(other)


def test_the_labeled_set_to_train_with_is_noted(cifar):
    options = ("--pool", cifar["cifar10"]["folders"], *LABELED, "--all")
    (note,) = source_of("unlabeled_cifar10", *options).notes
    assert "354 training images lie outside the 46 labeled ones" in note
    assert "cifar10_lt --imbalance-ratio 5 --largest 10 --seed 0 --imbalance-type exp" in note
    assert "not the published D_U" in note


def test_a_class_of_which_too_little_is_left_is_named_with_what_to_lower(cifar):
    options = ("--pool", cifar["cifar10"]["folders"], "--imbalance-ratio", 5)
    message = (
        r"^the pool has 0 images of class 'airplane' and 197 are needed; lower --size-factor \(5\)"
        r" or --largest \(40\), or take all .* --all$"
    )
    with pytest.raises(UserError, match=message):
        source_of("unlabeled_cifar10", *options, "--largest", 40)
    message = "class 'airplane' has 40 training images and 41 are needed: .*--largest is too large"
    with pytest.raises(UserError, match=message):
        source_of("unlabeled_cifar10", *options, "--largest", 41, "--all")


def test_training_folders_of_something_else_are_refused(tmp_path):
    touch(tmp_path, "train/zebra/1.png")
    with pytest.raises(UserError, match="class folder 'zebra' is not among"):
        source_of("unlabeled_cifar10", "--pool", tmp_path, "--all")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cifar100_takes_its_own_source_as_pool(cifar, tmp_path, layout):
    root = cifar["cifar100"][layout]
    options = ("--imbalance-ratio", 2, "--largest", 2)
    labeled = source_of("cifar100_lt", "--source", root, *options)
    pool = ("--pool", root, *options)
    rest = source_of("unlabeled_cifar100", *pool, "--all")
    balanced = ("--size-factor", 1, "--imbalance-ratio-unlabeled", 1)
    drawn = source_of("unlabeled_cifar100", *pool, *balanced)
    assert rest.classes == labeled.classes == [f"class_{label:03d}" for label in range(100)]
    keys = {key for key, _, _ in triples(labeled) + triples(rest)}
    assert len(keys) == 400 and len(triples(labeled)) == 101
    assert set(triples(drawn)) <= set(triples(rest))
    counts = np.bincount(drawn.splits["train"].columns["hidden_label"])
    np.testing.assert_array_equal(counts, [1] * 100)
    fill(tmp_path, {"pool.pickle": b""})
    with pytest.raises(UserError, match="pool.pickle' holds neither cifar-100-python/"):
        source_of("unlabeled_cifar100", "--pool", tmp_path / "pool.pickle")
