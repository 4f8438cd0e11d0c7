"""Unlabeled images: raw pools, the drawn sets D_U of Yang and Xu 2020 from all their sources,
near-duplicates, and pickles.
"""

import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from data_prep.reading import near_duplicates
from data_prep.reading.near_duplicates import NearDuplicates
from data_prep.reading.pickles import load_pickle, text_keys
from data_prep.reading.source import Source
from data_prep.reading.subsets import imbalanced_counts, unlabeled_counts
from data_prep.sets import svhn
from data_prep.sets.cifar import CIFAR10_CLASSES
from lt_train.data.manifest import UNLABELED, Manifest, read_dataset
from lt_train.data.scores import ScoreStore
from lt_train.errors import UserError
from tests.helpers.sources import (
    Attack,
    fill,
    pixels_of,
    png,
    prepared,
    python2_pickle,
    source_of,
    touch,
)

# --- raw pools

NUMBER = 23


@pytest.fixture(scope="module")
def tiny() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUMBER, 32, 32, 3), np.uint8)


def column_major(images: np.ndarray) -> bytes:
    """As tiny_images.bin: of an image, the value at row h, column w of channel c is byte h + 32 w +
    1024 c.
    """
    return images.transpose(0, 3, 2, 1).tobytes()


def assert_pool(
    source: Source, out: Path, keys: Sequence[str], pixels: Sequence[np.ndarray]
) -> None:
    """One split without labels, the same as a source and prepared."""
    split = source.splits["train"]
    assert (source.classes, list(source.splits), split.labels) == ([], ["train"], None)
    assert (
        list(split.keys[: len(split.keys)])
        == [split.keys[index] for index in range(len(split.keys))]
        == list(keys)
    )
    for index, expected in enumerate(pixels):
        np.testing.assert_array_equal(pixels_of(split.images.read(index)), expected)
    manifest = Manifest(prepared(source, out, 5), "train")
    assert [manifest.key(index) for index in range(len(manifest))] == list(keys), (
        "shards are runs of the pool's own order"
    )
    assert len(manifest.shards) == -(-len(keys) // 5) and (manifest.labels == UNLABELED).all()
    for index, expected in enumerate(pixels):
        np.testing.assert_array_equal(pixels_of(bytes(manifest.read(index))), expected)
    for tar in out.glob("*.tar"):
        assert not [name for name in tarfile.open(tar).getnames() if name.endswith(".cls")]


def test_tiny_images_bin_is_column_major(tiny, tmp_path):
    content = column_major(tiny)
    assert content[3 * 3072 + 5 + 32 * 7 + 1024 * 2] == tiny[3, 5, 7, 2]
    fill(tmp_path, {"tiny_images.bin": content})
    source = source_of("tinyimages", "--source", tmp_path / "tiny_images.bin")
    assert source.name == "tinyimages" and "withdrawn" in source.notes[0]
    assert source.splits["train"].images.read(0).startswith(b"P6\n32 32\n255\n")
    assert_pool(source, tmp_path / "out", [f"{number:08d}" for number in range(NUMBER)], tiny)


def test_an_npy_may_hold_images_of_any_shape(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (NUMBER, 9, 6, 3), np.uint8)
    np.save(tmp_path / "pool.npy", images)
    source = source_of("tinyimages", "--source", tmp_path / "pool.npy", "--name", "mine")
    assert source.name == "mine"
    assert_pool(source, tmp_path / "out", [f"{number:08d}" for number in range(NUMBER)], images)


def test_a_folder_of_images_is_a_pool(tiny, tmp_path):
    names = sorted(f"{'ab'[number % 2]}/c d/{number // 2}.png" for number in range(7))
    fill(
        tmp_path / "pool",
        {name: png(tiny[number]) for number, name in enumerate(names)}
        | {"notes.txt": b"x", "a/index.html": b"x"},
    )
    source = source_of("tinyimages", "--source", tmp_path / "pool")
    assert_pool(source, tmp_path / "out", [name.removesuffix(".png") for name in names], tiny[:7])


def write_tar(path: Path, files: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_webdataset_tars_are_a_pool(tiny, tmp_path):
    write_tar(
        tmp_path / "pool" / "b.tar",
        {
            "./x/2.v1.png": png(tiny[2]),
            "./x/2.v1.cls": b"7",
            f"{'long/' * 40}\N{SNOWMAN}.png": png(tiny[3]),
        },
    )
    write_tar(
        tmp_path / "pool" / "a.tar", {"0.png": png(tiny[0]), "0.json": b"{}", "1.png": png(tiny[1])}
    )
    keys = ["0", "1", "x/2_v1", f"{'long/' * 40}\N{SNOWMAN}"]
    assert_pool(
        source_of("tinyimages", "--source", tmp_path / "pool"), tmp_path / "out", keys, tiny[:4]
    )


def npy(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("arr_0.npy", npy(array))
    return buffer.getvalue()


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
BAD_POOLS = {
    "tiny_images.bin": bytes(3072 * 2 - 1),
    "empty.bin": b"",
    "float.npy": npy(IMAGES / 255),
    "int8.npy": npy(IMAGES.astype(np.int8)),
    "flat.npy": npy(IMAGES.reshape(4, -1)),
    "planes.npy": npy(IMAGES.transpose(0, 3, 1, 2)),
    "one_image.npy": npy(IMAGES[0]),
    "no_images.npy": npy(IMAGES[:0]),
    "fortran.npy": npy(np.asfortranarray(IMAGES)),
    "cut.npy": npy(IMAGES)[:-1],
    "cut_in_header.npy": npy(IMAGES)[:40],
    "unclosed_header.npy": npy(IMAGES).replace(b"}", b"("),
    "empty.npy": b"",
    "text.npy": b"not an array",
    "archive.npy": npz(IMAGES),
}


@pytest.mark.parametrize("name", BAD_POOLS)
def test_a_damaged_or_other_file_is_no_pool(tmp_path, name):
    fill(tmp_path, {name: BAD_POOLS[name]})
    with pytest.raises(UserError, match=name):
        source_of("tinyimages", "--source", tmp_path / name)


def test_an_npy_of_objects_is_refused_and_runs_nothing(tmp_path):
    objects = np.array([Attack(tmp_path / "attacked")] * 3, object)
    np.save(tmp_path / "pool.npy", objects, allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(objects))
    for name in ("pool.npy", "pickle.npy"):
        with pytest.raises(UserError, match=name):
            source_of("tinyimages", "--source", tmp_path / name)
    assert not (tmp_path / "attacked").exists()
    np.load(tmp_path / "pool.npy", allow_pickle=True)
    assert (tmp_path / "attacked").exists(), "it would have run"


def test_a_source_without_images_is_no_pool(tmp_path):
    touch(tmp_path, "empty/readme.txt")
    write_tar(tmp_path / "tars" / "a.tar", {"0.cls": b"1"})
    for name, message in (
        ("empty", "neither images"),
        ("tars", "hold no images"),
        ("nowhere", "there is no"),
    ):
        with pytest.raises(UserError, match=message):
            source_of("tinyimages", "--source", tmp_path / name)


CUTS = {  # and what is said
    "within an image": (lambda content: content[:700], "is truncated: it ends within 0.png"),
    "within a header": (
        lambda content: content[: 2048 + 100],
        "is truncated or damaged: at byte 2048",
    ),
    "between images": (lambda content: content[:2048], "is truncated or damaged: at byte 2048"),
    "in its header": (
        lambda content: content[: 2048 + 150] + b"x" + content[2048 + 151 :],
        "is truncated or damaged: at byte 2048",
    ),
    "to nothing": (lambda content: b"", "is not a whole uncompressed tar"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_truncated_tar_is_named(tmp_path, cut):
    """Two images, each a header of 512 bytes and 1,536 bytes of content."""
    tar = write_tar(tmp_path / "pool.tar", {"0.png": bytes(1500), "1.png": bytes(1500)})
    damage, message = CUTS[cut]
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(UserError, match=f"pool.tar' {message}"):
        source_of("tinyimages", "--source", tmp_path)


def test_keys_that_would_repeat_or_are_no_text_are_refused(tmp_path):
    write_tar(tmp_path / "two" / "a.tar", {"0.png": b"x"})
    write_tar(tmp_path / "two" / "b.tar", {"0.png": b"x"})
    write_tar(tmp_path / "latin" / "a.tar", {"caf\udce9.png": b"x"}, tarfile.GNU_FORMAT)
    write_tar(tmp_path / "lines" / "a.tar", {"a\nb.png": b"x"})
    for name, message in (
        ("two", "2 images would have the same key '0'"),
        ("latin", "not valid text"),
        ("lines", "not valid text"),
    ):
        with pytest.raises(UserError, match=message):
            source_of("tinyimages", "--source", tmp_path / name)


PLAN_TEN_MILLION = """
import resource, sys
from argparse import Namespace
from pathlib import Path
from data_prep.plan import make_plan
from data_prep.tinyimages import make_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan = make_plan(make_source(Namespace(source=Path(sys.argv[1]), name="pool")), Path("out"), 0, 10_000)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
split = plan.source.splits["train"]
images = sum(len(shard.indices) for shard in plan.shards)
sys.stdout.write(f"{len(plan.shards)} {images} {split.keys[9_999_999]} {len(split.images.read(9_999_999))} {grown}")
"""


def test_a_pool_of_ten_million_images_is_planned_in_little_memory(tmp_path):
    """A list of ten million keys alone would take 600 MB.

    In a process of its own, whose peak is its own.
    """
    (tmp_path / "tiny_images.bin").touch()
    os.truncate(tmp_path / "tiny_images.bin", 10_000_000 * 3072)
    command = [sys.executable, "-c", PLAN_TEN_MILLION, tmp_path / "tiny_images.bin"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    shards, images, last_key, last_size, kilobytes = outcome.stdout.split()
    assert (int(shards), int(images), last_key, int(last_size)) == (
        1000,
        10_000_000,
        "09999999",
        3072 + len("P6\n32 32\n255\n"),
    )
    assert int(kilobytes) < 100_000


# --- how many images of each class D_U has, and which


@dataclass(frozen=True)
class Published:
    """What the released code of Yang and Xu 2020 starts from."""

    order: list[int]  # of the classes
    img_max: int
    sizes: list[int]  # of the classes of the whole labeled set, in that order


CIFAR10 = Published(list(range(10)), 5000, [5000] * 10)
SVHN = Published(
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
    1000,
    [13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659, 4948],
)


def labeled_counts(which: Published, ratio: float, kind: str) -> list[int]:
    if kind == "step":
        return [which.img_max] * 5 + [int(which.img_max * (1 / ratio))] * 5
    return [int(which.img_max * (1 / ratio) ** (place / 9.0)) for place in range(10)]


def published_counts(labeled: list[int], ratio: float, factor: float) -> list[int]:
    total = sum(labeled) * factor
    first = total // 10
    numbers = [int(first * (1 / ratio) ** (place / 9.0)) for place in range(10)]
    scale = total / sum(numbers)
    return [int(number * scale) for number in numbers]


def published_draw(which: Published, aux_truth: np.ndarray, counts: list[int]) -> list[int]:
    """np.random.seed(0), the draw of the labeled set, and then that of the unlabeled one with the
    same generator.
    """
    random = np.random.RandomState(0)
    targets = np.random.default_rng(9).permutation(np.repeat(which.order, which.sizes))
    for label in which.order:
        random.shuffle(np.where(targets == label)[0])
    chosen = []
    for label, count in zip(which.order, counts):
        found = np.where(aux_truth == label)[0]
        random.shuffle(found)
        chosen.extend(found[:count].tolist())
    return chosen


def test_the_class_sizes_of_svhn_add_up():
    """A draw hardly tells: one from 4,947 images soon falls into step with one from 4,948."""
    assert (
        sum(SVHN.sizes) == 73_257
        and [svhn.TRAIN_COUNTS[digit] for digit in SVHN.order] == SVHN.sizes
    )


@pytest.mark.parametrize("kind", ["exp", "step"])
@pytest.mark.parametrize("ratio", [10, 50, 100])
@pytest.mark.parametrize("unlabeled_ratio", [1, 25, 50, 100])
def test_counts_of_d_u_are_the_published_ones(ratio, unlabeled_ratio, kind):
    for which in (CIFAR10, SVHN):
        labeled = labeled_counts(which, ratio, kind)
        counts = unlabeled_counts(
            sum(imbalanced_counts(which.img_max, 10, ratio, kind)), 10, unlabeled_ratio, 5.0
        )
        assert counts == published_counts(labeled, unlabeled_ratio, 5)
        assert 0 <= 5 * sum(labeled) - sum(counts) < 10, "each class is rounded down"
        assert counts[9] == pytest.approx(counts[0] / unlabeled_ratio, abs=6)


POOL_SIZES = [95, 70, 60, 50, 40, 40, 30, 30, 25, 25]


@pytest.fixture(scope="module")
def selected() -> dict[str, np.ndarray | list[int]]:
    """A pool as of Carmon et al. 2019, a few of its images of no class."""
    generator = np.random.default_rng(3)
    targets = generator.permutation(np.repeat(np.arange(-1, 10), [20, *POOL_SIZES]))
    return {
        "data": generator.integers(0, 256, (len(targets), 32, 32, 3), np.uint8),
        "extrapolated_targets": targets.tolist(),
    }


PICKLES: dict[str, Callable[[dict], bytes]] = {
    "Python 2": python2_pickle,
    "Python 3": lambda content: pickle.dumps(content),
    "Python 3, protocol 2, bytes keys": lambda content: pickle.dumps(
        {key.encode(): value for key, value in content.items()}, protocol=2
    ),
    "all arrays": lambda content: pickle.dumps(
        {key: np.array(value) for key, value in content.items()}, protocol=5
    ),
    "old NumPy": (
        lambda content: pickle.dumps(content, protocol=3).replace(
            b"numpy._core.multiarray", b"numpy.core.multiarray"
        )
    ),
}
SMALL = ("--size-factor", "0.015")


@pytest.mark.parametrize("writer", PICKLES)
def test_a_pickle_gives_the_published_draw_index_for_index(selected, tmp_path, writer):
    (tmp_path / "ti.pickle").write_bytes(PICKLES[writer](selected))
    source = source_of("unlabeled_cifar10", "--pool", tmp_path / "ti.pickle", *SMALL)
    targets = np.array(selected["extrapolated_targets"])
    counts = published_counts(labeled_counts(CIFAR10, 50, "exp"), 50, 0.015)
    expected = published_draw(CIFAR10, targets, counts)
    split = source.splits["train"]
    assert (source.name, source.classes, split.labels) == (
        "unlabeled_cifar10",
        CIFAR10_CLASSES,
        None,
    )
    assert len(expected) > 200 and split.keys == [f"ti_{index:07d}" for index in expected]
    np.testing.assert_array_equal(split.columns["sourced_label"], targets[expected])
    for number in range(0, len(expected), 7):
        np.testing.assert_array_equal(
            pixels_of(split.images.read(number)), selected["data"][expected[number]]
        )
    assert "withdrawn" in source.notes[0] and len(source.notes) == 1


def test_published_pseudo_labels_follow_their_images(selected, tmp_path):
    (tmp_path / "ti.pickle").write_bytes(pickle.dumps(selected))
    pseudo = np.random.default_rng(4).integers(0, 10, len(selected["data"]))
    (tmp_path / "pseudo.pickle").write_bytes(
        pickle.dumps(
            {"extrapolated_targets": pseudo, "prediction_model": "checkpoint/ckpt.best.pth.tar"}
        )
    )
    options = ("unlabeled_cifar10", "--pool", tmp_path / "ti.pickle", *SMALL, "--pseudo-labels")
    source = source_of(*options, tmp_path / "pseudo.pickle")
    split = source.splits["train"]
    numbers = [int(key.removeprefix("ti_")) for key in split.keys]
    np.testing.assert_array_equal(split.columns["pseudo_label"], pseudo[numbers])
    assert (
        split.keys == source_of(*options[:-1]).splits["train"].keys
    )  # they change nothing about the draw

    (tmp_path / "pseudo.pickle").write_bytes(pickle.dumps({"extrapolated_targets": pseudo[:50]}))
    with pytest.raises(UserError, match="it has 50 labels, and the pool at least"):
        source_of(*options, tmp_path / "pseudo.pickle")


@pytest.mark.parametrize("which", ["cifar10", "svhn"])
@pytest.mark.parametrize(
    ("ratio", "kind"), [(10, "exp"), (50, "step"), (100, "exp"), (100, "step")]
)
@pytest.mark.parametrize("unlabeled_ratio", [None, 1, 25])
def test_the_draw_follows_from_both_imbalances(
    selected, tmp_path, which, ratio, kind, unlabeled_ratio
):
    (tmp_path / "ti.pickle").write_bytes(pickle.dumps(selected))
    published = {"cifar10": CIFAR10, "svhn": SVHN}[which]
    labeled = labeled_counts(published, ratio, kind)
    factor = 90 / sum(labeled)
    more = [] if unlabeled_ratio is None else ["--imbalance-ratio-unlabeled", unlabeled_ratio]
    options = [
        "--imbalance-ratio",
        ratio,
        "--imbalance-type",
        kind,
        *more,
        "--size-factor",
        repr(factor),
    ]
    source = source_of(f"unlabeled_{which}", "--pool", tmp_path / "ti.pickle", *options)
    counts = published_counts(labeled, unlabeled_ratio or ratio, factor)
    expected = published_draw(published, np.array(selected["extrapolated_targets"]), counts)
    assert (
        source.splits["train"].keys == [f"ti_{index:07d}" for index in expected]
        and 70 < len(expected) <= 90
    )


def test_another_seed_draws_otherwise_and_is_noted(selected, tmp_path):
    (tmp_path / "ti.pickle").write_bytes(pickle.dumps(selected))
    first, other = (
        source_of("unlabeled_cifar10", "--pool", tmp_path / "ti.pickle", *SMALL, "--seed", seed)
        for seed in (0, 1)
    )
    assert (
        first.splits["train"].keys != other.splits["train"].keys
        and "not the published subset" in other.notes[-1]
    )


def test_all_sourced_images_can_be_kept(selected, tmp_path):
    (tmp_path / "ti.pickle").write_bytes(pickle.dumps(selected))
    split = source_of("unlabeled_cifar10", "--pool", tmp_path / "ti.pickle", "--all").splits[
        "train"
    ]
    kept = np.flatnonzero(np.array(selected["extrapolated_targets"]) >= 0)
    assert split.keys == [f"ti_{index:07d}" for index in kept] and len(kept) == sum(POOL_SIZES)
    np.testing.assert_array_equal(
        split.columns["sourced_label"], np.array(selected["extrapolated_targets"])[kept]
    )


def test_prepared_d_u_is_unlabeled_but_for_a_column_and_dealt_by_it(selected, tmp_path):
    (tmp_path / "ti.pickle").write_bytes(pickle.dumps(selected))
    root = prepared(
        source_of("unlabeled_cifar10", "--pool", tmp_path / "ti.pickle", *SMALL),
        tmp_path / "out",
        50,
    )
    manifest = Manifest(root, "train")
    assert (
        (manifest.labels == UNLABELED).all()
        and not manifest.class_counts.any()
        and manifest.classes == CIFAR10_CLASSES
    )
    places = [int(manifest.key(index).removeprefix("ti_")) for index in range(len(manifest))]
    np.testing.assert_array_equal(
        manifest.column("sourced_label"), np.array(selected["extrapolated_targets"])[places]
    )
    assert not [
        name
        for tar in root.glob("*.tar")
        for name in tarfile.open(tar).getnames()
        if name.endswith(".cls")
    ]
    shards = np.repeat(
        np.arange(len(manifest.shards)), [shard.samples for shard in manifest.shards]
    )
    for label in range(10):
        table = np.bincount(
            shards[manifest.column("sourced_label") == label], minlength=len(manifest.shards)
        )
        assert len(table) > 3 and table.max() - table.min() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--size-factor", "0.05"],
            "the pool has 95 images of class 'airplane' and .* are needed; lower --size-factor",
        ),
        (["--size-factor", "0"], "--size-factor"),
        (["--size-factor", "-1"], "--size-factor"),
        (["--size-factor", "nan"], "--size-factor"),
        (["--size-factor", "inf"], "--size-factor"),
        (["--size-factor", "1e308"], "--size-factor"),
        (["--size-factor", "1e-9"], "at least 1 image"),
        (["--imbalance-ratio", "0.1"], "--imbalance-ratio"),
        (["--imbalance-ratio-unlabeled", "nan"], "--imbalance-ratio"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused(selected, tmp_path, options, message):
    (tmp_path / "ti.pickle").write_bytes(pickle.dumps(selected))
    with pytest.raises(UserError, match=message):
        source_of("unlabeled_cifar10", "--pool", tmp_path / "ti.pickle", *options)


ZEROS = np.zeros((2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        {"data": ZEROS},
        {"extrapolated_targets": [0, 1]},
        {"data": ZEROS, "extrapolated_targets": [0]},
        {"data": ZEROS, "extrapolated_targets": [0, 10]},
        {"data": ZEROS, "extrapolated_targets": [0, 10**30]},
        {"data": ZEROS, "extrapolated_targets": ["cat", "dog"]},
        {"data": ZEROS / 255, "extrapolated_targets": [0, 1]},
        {"data": ZEROS.reshape(2, -1), "extrapolated_targets": [0, 1]},
        {"data": ZEROS.transpose(0, 3, 1, 2), "extrapolated_targets": [0, 1]},
        [1, 2],
        None,
    ],
)
def test_a_pickle_of_something_else_is_named(tmp_path, content):
    (tmp_path / "ti.pickle").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="ti.pickle' does not hold 'data'"):
        source_of("unlabeled_cifar10", "--pool", tmp_path / "ti.pickle", "--all")


def test_a_pool_that_would_run_code_is_refused_and_runs_none(tmp_path):
    content = pickle.dumps({"data": ZEROS, "extrapolated_targets": Attack(tmp_path / "attacked")})
    (tmp_path / "ti.pickle").write_bytes(content)
    for name in ("unlabeled_cifar10", "unlabeled_svhn"):
        with pytest.raises(UserError, match="ti.pickle.*refused"):
            source_of(name, "--pool", tmp_path / "ti.pickle")
    assert not (tmp_path / "attacked").exists()
    pickle.loads(content)
    assert (tmp_path / "attacked").exists(), "it would have run"


# --- SVHN's extra images


@pytest.fixture(scope="module")
def extra() -> tuple[np.ndarray, np.ndarray]:
    """Labels and pixels."""
    generator = np.random.default_rng(4)
    labels = generator.permutation(np.repeat([1, 2, 3, 4, 5, 6, 7, 8, 9, 0], POOL_SIZES))
    return labels, generator.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)


def test_svhns_extra_images_are_drawn_by_their_labels_which_stay_in_a_column(extra, tmp_path):
    labels, pixels = extra
    savemat(
        tmp_path / "extra_32x32.mat",
        {
            "X": pixels.transpose(1, 2, 3, 0),
            "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8),
        },
    )
    source = source_of(
        "unlabeled_svhn", "--pool", tmp_path, "--size-factor", "0.05", "--imbalance-ratio", 50
    )
    counts = published_counts(labeled_counts(SVHN, 50, "exp"), 50, 0.05)
    expected = published_draw(SVHN, labels, counts)
    split = source.splits["train"]
    assert (source.name, source.classes, split.labels, source.notes) == (
        "unlabeled_svhn",
        [str(digit) for digit in range(10)],
        None,
        [],
    )
    assert split.keys == [f"extra_{index:07d}" for index in expected] and len(expected) > 120
    np.testing.assert_array_equal(split.columns["sourced_label"], labels[expected])
    counted = np.bincount(split.columns["sourced_label"])
    assert counted[1] == counts[0] == counted.max() and counted[0] == counts[9] == counted.min()
    for number in range(0, len(expected), 9):
        np.testing.assert_array_equal(
            pixels_of(split.images.read(number)), pixels[expected[number]]
        )


def test_svhns_extra_images_may_lie_in_class_folders(extra, tmp_path):
    labels, pixels = extra
    fill(
        tmp_path / "extra",
        {f"{labels[index]}/{index:03d}.png": png(pixels[index]) for index in range(100)},
    )
    split = source_of("unlabeled_svhn", "--pool", tmp_path, "--all").splits["train"]
    order = np.argsort(labels[:100], kind="stable")
    np.testing.assert_array_equal(split.columns["sourced_label"], labels[order])
    assert split.keys == [f"extra_{index:07d}" for index in range(100)]
    assert [split.images.read(number) for number in range(100)] == [
        png(pixels[index]) for index in order
    ]


def test_what_is_no_pool_at_all_is_refused(tmp_path):
    with pytest.raises(
        UserError,
        match="neither a pickle nor a pool that data_prep has sharded nor cifar-10-batches-py$",
    ):
        source_of("unlabeled_cifar10", "--pool", tmp_path)
    with pytest.raises(UserError, match="neither extra_32x32.mat nor a folder extra/"):
        source_of("unlabeled_svhn", "--pool", tmp_path)
    with pytest.raises(UserError, match="nor SVHN's extra images"):
        source_of("unlabeled_svhn", "--pool", tmp_path / "nowhere")


# --- near-duplicates


def moved(generator: np.random.Generator, image: np.ndarray, squared: int) -> np.ndarray:
    """An image at exactly this squared distance from ``image``."""
    result, left = image.astype(np.int64).ravel(), squared
    for place in generator.permutation(result.size):
        room = max(result[place], 255 - result[place])
        step = min(int(generator.integers(45, 80)), isqrt(left), int(room))
        result[place] += step if result[place] + step <= 255 else -step
        left -= step * step
    assert not left
    return result.astype(np.uint8).reshape(image.shape)


def squared_distances(images: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(N, M) int64."""
    flat = test.reshape(len(test), -1).astype(np.int64)
    return np.stack([((flat - image.ravel().astype(np.int64)) ** 2).sum(1) for image in images])


LIMIT = 2000**2


@pytest.mark.parametrize("brightness", ["noise", "black", "white"])
def test_near_duplicates_are_told_to_the_last_grey_level(monkeypatch, brightness):
    """Black and white are where the products are largest, so that rounding would show first."""
    monkeypatch.setattr(near_duplicates, "AT_ONCE", 7)  # several blocks
    generator = np.random.default_rng(5)
    darkest, brightest = {"noise": (0, 255), "black": (0, 2), "white": (253, 255)}[brightness]
    test = generator.integers(darkest, brightest + 1, (30, 32, 32, 3), np.uint8)
    distances = [
        0,
        1,
        LIMIT // 2,
        LIMIT - 20_000,
        LIMIT - 2,
        LIMIT - 1,
        LIMIT,
        LIMIT + 1,
        LIMIT + 2,
        LIMIT + 20_000,
        2 * LIMIT,
    ]
    planted = np.stack(
        [
            moved(generator, test[(3 * number) % 30], squared)
            for number, squared in enumerate(distances * 4)
        ]
    )
    exact = squared_distances(planted, test).min(1)
    if brightness == "noise":
        assert exact.tolist() == distances * 4
    found = NearDuplicates(test)(planted)
    np.testing.assert_array_equal(found, exact < LIMIT)
    assert 0 < found.sum() < len(found)


def test_near_duplicates_of_many_random_images_and_of_none():
    generator = np.random.default_rng(6)
    test = generator.integers(0, 256, (50, 32, 32, 3), np.uint8)
    images = generator.integers(0, 256, (300, 32, 32, 3), np.uint8)
    images[::7] = [
        moved(generator, test[number % 50], LIMIT + int(generator.integers(-400, 400)))
        for number in range(len(images[::7]))
    ]
    found = NearDuplicates(test)(images)
    np.testing.assert_array_equal(found, squared_distances(images, test).min(1) < LIMIT)
    assert 10 < found.sum() < 35
    assert NearDuplicates(test)(images[:0]).shape == (0,)


@pytest.mark.parametrize("threshold", [1, 50])
def test_another_threshold_holds_as_exactly(threshold):
    generator = np.random.default_rng(7)
    test = generator.integers(0, 256, (9, 32, 32, 3), np.uint8)
    images = np.stack([moved(generator, test[4], threshold**2 + more) for more in (-1, 0, 1)])
    assert NearDuplicates(test, threshold)(images).tolist() == [True, False, False]


# --- D_U from a scored pool


@dataclass(frozen=True)
class Scored:
    """A sharded pool with its scores, and a prepared labeled set; rows are those of the pool."""

    pool: Path
    scores: Path
    test_set: Path
    pixels: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    near: np.ndarray  # by brute force

    @property
    def arguments(self) -> list:
        return ["--pool", self.pool, "--scores", self.scores, "--test-set", self.test_set]

    def best(self, per_class: int) -> list[int]:
        """Sample ids: of each class, the likeliest that are no near-duplicates; of equals, the
        first.
        """
        ids = []
        for label in range(10):
            clean = [
                index
                for index in np.flatnonzero(self.labels == label).tolist()
                if not self.near[index]
            ]
            ids += sorted(clean, key=lambda index: (-float(self.values[index]), index))[:per_class]
        return sorted(ids)


POOL = 900


@pytest.fixture(scope="module")
def scored(tmp_path_factory, prepare) -> Scored:
    """Every seventh image is a near-duplicate or just none; of class 3 they have the best scores,
    and of class 4 there is nothing else.
    """
    root = tmp_path_factory.mktemp("scored")
    generator = np.random.default_rng(8)
    test = generator.integers(0, 256, (20, 32, 32, 3), np.uint8)
    pixels = generator.integers(0, 256, (POOL, 32, 32, 3), np.uint8)
    labels = generator.integers(-1, 10, POOL).astype(np.int32)  # -1: could not be read
    values = np.round(generator.random(POOL), 2).astype(np.float32)  # with many equal ones
    doubtful = np.flatnonzero((np.arange(POOL) % 7 == 0) | (labels == 4))
    labels[doubtful[::3]] = 3
    pixels[doubtful] = [
        moved(generator, test[generator.integers(20)], LIMIT - int(generator.integers(-1, 6)))
        for _ in doubtful
    ]
    near = squared_distances(pixels, test).min(1) < LIMIT
    values[near & (labels == 3)] = 1.5
    np.save(root / "pool.npy", pixels)
    pool = prepared(source_of("tinyimages", "--source", root / "pool.npy"), root / "pool")
    write_scores(root / "scores", pool, labels, values)
    test_set = prepare(
        {
            "train": ([png(test[0])], [0]),
            "test": ([png(image) for image in test], np.arange(20) % 10),
        },
        10,
    )
    return Scored(pool, root / "scores", test_set, pixels, labels, values, near)


def write_scores(
    folder: Path,
    pool: Path,
    labels: np.ndarray,
    values: np.ndarray,
    classes: int = 10,
    leave_out: int = 0,
) -> Path:
    store = ScoreStore(folder, read_dataset(pool))
    store.begin(CIFAR10_CLASSES[:classes], "sha256 of a model")
    ends = np.cumsum([0] + [shard.samples for shard in store.shards])
    for shard in range(len(store.shards) - leave_out):
        part = slice(ends[shard], ends[shard + 1])
        store.write(shard, labels[part], values[part])
    return folder


@pytest.mark.parametrize("per_class", [1, 12, 40, 10_000])
def test_the_likeliest_images_that_are_no_near_duplicates_are_kept(scored, per_class):
    expected = scored.best(per_class)
    source = source_of("unlabeled_cifar10", *scored.arguments, "--per-class", per_class, "--all")
    split = source.splits["train"]
    assert split.keys == [f"{index:08d}" for index in expected] and split.labels is None
    np.testing.assert_array_equal(split.columns["sourced_label"], scored.labels[expected])
    np.testing.assert_array_equal(split.columns["score"], scored.values[expected])
    for number in range(0, len(expected), 13):
        np.testing.assert_array_equal(
            pixels_of(split.images.read(number)), scored.pixels[expected[number]]
        )
    assert (
        "withdrawn" in source.notes[0]
        and f"{len(expected):,} images kept of {POOL} scored" in source.notes[1]
    )


def test_the_selection_had_to_look_beyond_near_duplicates(scored):
    """What the test above relies on: far more than it first looks at, in class 3, and few others in
    class 4.
    """
    third = np.flatnonzero(scored.labels == 3)
    best = third[np.lexsort((third, -scored.values[third]))]
    assert scored.near[best[:36]].all() and (~scored.near[best]).sum() > 12
    assert 0 < (~scored.near & (scored.labels == 4)).sum() < 40
    assert len(np.unique(scored.values)) < 110 and (scored.labels == -1).any()


def test_d_u_is_drawn_from_the_kept_images_as_published(scored, tmp_path):
    kept = np.array(scored.best(12))
    options = ["--size-factor", "0.003", "--imbalance-ratio-unlabeled", 2]
    source = source_of("unlabeled_cifar10", *scored.arguments, "--per-class", 12, *options)
    counts = published_counts(labeled_counts(CIFAR10, 50, "exp"), 2, 0.003)
    expected = kept[published_draw(CIFAR10, scored.labels[kept], counts)]
    assert (
        source.splits["train"].keys == [f"{index:08d}" for index in expected] and len(expected) > 30
    )
    manifest = Manifest(prepared(source, tmp_path / "out", 10), "train")
    places = [int(manifest.key(index)) for index in range(len(manifest))]
    assert sorted(places) == sorted(expected) and (manifest.labels == UNLABELED).all()
    np.testing.assert_array_equal(manifest.column("score"), scored.values[places])
    np.testing.assert_array_equal(manifest.column("sourced_label"), scored.labels[places])


def refused(scored: Scored, **changes) -> str:
    """What the recipe says."""
    found = {"pool": scored.pool, "scores": scored.scores, "test_set": scored.test_set} | changes
    arguments = [
        word
        for name, value in found.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", value)
    ]
    with pytest.raises(UserError) as error:
        source_of("unlabeled_cifar10", *arguments, "--per-class", 12, "--all")
    return str(error.value)


def test_a_sharded_pool_needs_scores_and_a_test_set(scored, tmp_path):
    for option in ("scores", "test_set"):
        assert "needs --scores DIR" in refused(scored, **{option: None})
    assert f"'{tmp_path}' is not a prepared data set" in refused(scored, test_set=tmp_path)
    assert "has no split 'test'" in refused(scored, test_set=scored.pool)


def test_missing_or_other_scores_are_refused(scored, tmp_path):
    assert "holds no scores" in refused(scored, scores=tmp_path)
    some = write_scores(tmp_path / "some", scored.pool, scored.labels, scored.values, leave_out=2)
    assert "2 of 9 shards are not scored yet" in refused(scored, scores=some)
    nine = write_scores(tmp_path / "nine", scored.pool, scored.labels, scored.values, classes=9)
    assert "scores for 9 classes, not 10" in refused(scored, scores=nine)
    np.save(tmp_path / "other.npy", scored.pixels[1:])
    other = prepared(
        source_of("tinyimages", "--source", tmp_path / "other.npy"), tmp_path / "other"
    )
    of_other = write_scores(
        tmp_path / "scores_of_other", other, scored.labels[1:], scored.values[1:]
    )
    assert "scores of another pool" in refused(scored, scores=of_other)


def test_images_of_another_size_are_refused(scored, prepare):
    images = [png(np.zeros((size, 32, 3), np.uint8)) for size in (32, 16)]
    assert "but an image has 32 x 16" in refused(
        scored, test_set=prepare({"train": (images, [0, 1]), "test": (images, [0, 1])}, 10)
    )


@pytest.mark.parametrize("damage", ["gone", "cut", "overwritten"])
def test_a_pool_that_was_damaged_since_is_named(scored, tmp_path, damage):
    pool = tmp_path / "pool"
    pool.mkdir()
    for file in scored.pool.iterdir():
        (pool / file.name).hardlink_to(file)
    for tar in pool.glob("*.tar"):
        content = tar.read_bytes()
        tar.unlink()
        if damage != "gone":
            tar.write_bytes(content[:1000] if damage == "cut" else bytes(len(content)))
    assert f"cannot read an image of '{pool}'" in refused(scored, pool=pool)


# --- pickles


ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6, dtype=">i4")[::2],
    np.array([True, False]),
    np.array(["a", "bc"]),
    np.array([b"xyz"]),
    np.array(5),
    np.zeros((0, 3), np.uint8),
    np.float32(0.1),
    np.int64(-1),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_and_plain_values_are_read_as_they_are(tmp_path, protocol):
    plain = {
        "text": "caf\xe9",
        "bytes": b"\xff",
        "none": [None, b"", "", 3, -(2**70), 0.5, True, (1, [2], {"a": 1})],
    }
    (tmp_path / "file").write_bytes(pickle.dumps({"arrays": ARRAYS, **plain}, protocol=protocol))
    content, expected = (
        load_pickle(tmp_path / "file"),
        pickle.loads((tmp_path / "file").read_bytes()),
    )
    for found, array, reference in zip(
        content.pop("arrays"), ARRAYS, expected["arrays"], strict=True
    ):
        np.testing.assert_array_equal(found, array, strict=False)
        assert (found.dtype, found.shape) == (reference.dtype, reference.shape)
    assert content == plain


def test_keys_become_text_whichever_python_wrote_them(tmp_path):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "2").write_bytes(python2_pickle({"data": array, "labels": [1, -2]}))
    (tmp_path / "3").write_bytes(pickle.dumps({"data": array, "labels": [1, -2]}))
    for name in "23":
        content = text_keys(load_pickle(tmp_path / name))
        assert list(content) == ["data", "labels"] and content["labels"] == [1, -2]
        np.testing.assert_array_equal(content["data"], array)


class Forged:
    """Pickles as an array of objects whose pointers are given as bytes; NumPy's own __setstate__
    would believe it.
    """

    class Dtype:
        def __reduce__(self):
            return np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0)

    def __reduce__(self):
        reconstruct, arguments, _ = np.zeros(0).__reduce__()
        return reconstruct, arguments, (1, (4,), self.Dtype(), False, b"\x01" * 32)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


REFUSED = {
    "forged pointers": Forged(),
    "objects": np.array([None, 1], object),
    "fields": np.zeros(2, "u1,i4"),
    "fields of objects": np.zeros(2, "u1,O"),
    "dates": np.array(["2020"], "M8[D]"),
    "a builtin": Call(eval, "1"),
    "a NumPy function": Call(np.load, "x"),
    "an array made otherwise": Call(np.ndarray, (3,), np.dtype("u1")),
    "a class": Path("x"),
    "memory of another array": Call(
        np._core.numeric._frombuffer, np.arange(3), np.dtype("u1"), (24,), "C"
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_anything_but_arrays_of_numbers_or_text_is_refused(tmp_path, kind, protocol):
    (tmp_path / "file").write_bytes(pickle.dumps({"data": REFUSED[kind]}, protocol=protocol))
    with pytest.raises(UserError, match="cannot read the pickle .*file"):
        load_pickle(tmp_path / "file")


def test_names_with_dots_in_them_reach_no_further(tmp_path):
    """Protocol 4 looks up each part of a name in the one before."""
    (tmp_path / "file").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x12dtype.__init__.x.y\x93.")
    with pytest.raises(UserError, match="refused"):
        load_pickle(tmp_path / "file")


@pytest.mark.parametrize("cut", [0, 1, 20, 100, -1])
def test_a_damaged_pickle_is_named(tmp_path, cut):
    (tmp_path / "file").write_bytes(pickle.dumps({"data": ARRAYS[0]})[:cut])
    with pytest.raises(UserError, match="cannot read the pickle .*file"):
        load_pickle(tmp_path / "file")
    with pytest.raises(UserError, match="cannot read the pickle .*nowhere"):
        load_pickle(tmp_path / "nowhere")
