"""Unlabeled sets of the training images that a labeled set leaves: CIFAR, ILSVRC2012; and
--largest, which leaves more of them.
"""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep import inspect
from data_prep.reading.source import Source
from data_prep.reading.subsets import imbalanced_counts, unlabeled_counts
from data_prep.sets.cifar import CIFAR10_CLASSES
from lt_train.data.manifest import UNLABELED, Manifest
from lt_train.errors import UserError
from tests.helpers.sources import contents, fill, pixels_of, png, prepared, source_of, touch

LAYOUTS = ["official", "folders"]


def noise(number: int, side: int) -> np.ndarray:
    """Images that are all different."""
    return np.random.default_rng(number).integers(0, 256, (number, side, side, 3), np.uint8)


def triples(source: Source, split: str = "train") -> list[tuple[str, int, bytes]]:
    """(key, label, bytes) of a split; of an unlabeled one, the hidden label."""
    part = source.splits[split]
    labels = part.columns["hidden_label"] if part.labels is None else part.labels
    return [
        (key, int(label), part.images.read(index))
        for index, (key, label) in enumerate(zip(part.keys, labels, strict=True))
    ]


def assert_no_label_shows(source: Source, out: Path) -> Manifest:
    """Prepared, nothing but the column ``hidden_label`` tells the class, and ``info`` counts by it."""
    assert [(split.labels, list(split.columns)) for split in source.splits.values()] == [
        (None, ["hidden_label"])
    ]
    root = prepared(source, out, 25)
    manifest = Manifest(root, "train")
    assert (manifest.labels == UNLABELED).all() and not manifest.class_counts.any()
    assert (
        not {"sourced_label", "pseudo_label"} & set(manifest.columns)
        and manifest.classes == source.classes
    )
    assert not [
        name
        for tar in root.glob("*.tar")
        for name in tarfile.open(tar).getnames()
        if name.endswith(".cls")
    ]
    assert not list(inspect.problems(root))
    console = Console(file=io.StringIO(), width=120)
    inspect.show(root, console)
    assert "classes by hidden_label (the set is unlabeled)" in console.file.getvalue()
    return manifest


# --- CIFAR

PER_CLASS = 40
SETS = {"cifar10": (10, "labels"), "cifar100": (100, "fine_labels")}


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> dict[str, dict[str, Path]]:
    """Both sets with 40 training images a class (CIFAR-100: 4) in both layouts."""
    roots = {}
    for which, (number, column) in SETS.items():
        root = tmp_path_factory.mktemp(which)
        labels = np.random.default_rng(0).permutation(
            np.repeat(np.arange(number), PER_CLASS * 10 // number)
        )
        pixels = noise(len(labels), 32)
        names = (
            CIFAR10_CLASSES if number == 10 else [f"class_{label:03d}" for label in range(number)]
        )
        folder = root / "official" / ("cifar-10-batches-py" if number == 10 else "cifar-100-python")
        files = [f"data_batch_{batch}" for batch in range(1, 6)] if number == 10 else ["train"]
        for file, part in zip(files, np.array_split(np.arange(len(labels)), len(files))):
            batch = {
                column: labels[part].tolist(),
                "data": pixels[part].transpose(0, 3, 1, 2).reshape(-1, 3072),
            }
            fill(folder, {file: pickle.dumps(batch)})
        test = {column: list(range(number)), "data": np.zeros((number, 3072), np.uint8)}
        fill(
            folder,
            {
                "test_batch" if number == 10 else "test": pickle.dumps(test),
                "meta": pickle.dumps({"fine_label_names": names}),
            },
        )
        for label, name in enumerate(names):
            fill(
                root / "folders" / "train" / name,
                {
                    f"{rank:03d}.png": png(pixels[index])
                    for rank, index in enumerate(np.flatnonzero(labels == label))
                },
            )
            fill(root / "folders" / "test" / name, {"0.png": png(np.zeros((32, 32, 3), np.uint8))})
        roots[which] = {layout: root / layout for layout in LAYOUTS}
    return roots


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
    every = triples(
        source_of("cifar10_lt", "--source", root, "--imbalance-ratio", 1, "--largest", PER_CLASS)
    )
    assert (
        sorted(labeled + rest) == sorted(every)
        and len({key for key, _, _ in every}) == len({content for _, _, content in every}) == 400
    )
    assert len(rest) == 400 - sum(
        imbalanced_counts(options[3], 10, options[1], "step" if "step" in options else "exp")
    )


@pytest.mark.parametrize("unlabeled_ratio", [1, 5])
def test_d_u_of_the_rest_has_its_counts_and_nothing_of_the_labeled_set(
    cifar, tmp_path, unlabeled_ratio
):
    root = cifar["cifar10"]["official"]
    labeled = triples(source_of("cifar10_lt", "--source", root, *LABELED))
    source = source_of(
        "unlabeled_cifar10",
        "--pool",
        root,
        *LABELED,
        "--imbalance-ratio-unlabeled",
        unlabeled_ratio,
        "--size-factor",
        3,
    )
    drawn = triples(source)
    assert (source.name, source.classes) == ("unlabeled_cifar10", CIFAR10_CLASSES)
    counts = unlabeled_counts(len(labeled), 10, unlabeled_ratio, 3)
    assert (
        np.bincount([label for _, label, _ in drawn]).tolist() == counts
        and 0 <= 3 * len(labeled) - sum(counts) < 10
    )
    for which in (0, 2):  # keys, bytes
        assert not {row[which] for row in drawn} & {row[which] for row in labeled} and len(
            {row[which] for row in drawn}
        ) == len(drawn)
    assert set(drawn) <= set(
        triples(source_of("unlabeled_cifar10", "--pool", root, "--all", *LABELED))
    )
    manifest = assert_no_label_shows(source, tmp_path / "out")
    found = {
        (
            manifest.key(index),
            int(manifest.column("hidden_label")[index]),
            bytes(manifest.read(index)),
        )
        for index in range(len(manifest))
    }
    assert found == set(drawn)


def test_d_u_of_the_rest_is_the_same_in_both_layouts(cifar):
    drawn = [
        triples(source_of("unlabeled_cifar10", "--pool", root, *LABELED, "--size-factor", 2))
        for root in cifar["cifar10"].values()
    ]
    assert [row[:2] for row in drawn[0]] == [row[:2] for row in drawn[1]]
    for (_, _, one), (_, _, other) in zip(*drawn):
        np.testing.assert_array_equal(pixels_of(one), pixels_of(other))


def test_d_u_of_the_rest_follows_from_the_seed(cifar):
    options = ("--pool", cifar["cifar10"]["official"], *LABELED, "--size-factor", 2, "--seed")
    first, again, other = (
        triples(source_of("unlabeled_cifar10", *options, seed)) for seed in (0, 0, 1)
    )
    assert first == again and set(first) != set(other)


def test_the_labeled_set_to_train_with_is_noted(cifar):
    notes = source_of(
        "unlabeled_cifar10", "--pool", cifar["cifar10"]["folders"], *LABELED, "--all"
    ).notes
    assert len(notes) == 1 and "354 training images lie outside the 46 labeled ones" in notes[0]
    assert (
        "cifar10_lt --imbalance-ratio 5 --largest 10 --seed 0 --imbalance-type exp" in notes[0]
        and "not the published D_U" in notes[0]
    )


def test_a_class_of_which_too_little_is_left_is_named_with_what_to_lower(cifar):
    options = ("--pool", cifar["cifar10"]["folders"], "--imbalance-ratio", 5)
    message = (
        r"^the pool has 0 images of class 'airplane' and 197 are needed; lower --size-factor \(5\)"
        r" or --largest \(40\), or take all .* --all$"
    )
    with pytest.raises(UserError, match=message):
        source_of("unlabeled_cifar10", *options, "--largest", 40)
    with pytest.raises(
        UserError,
        match="class 'airplane' has 40 training images and 41 are needed: .*--largest is too large",
    ):
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
    rest = source_of("unlabeled_cifar100", "--pool", root, *options, "--all")
    drawn = source_of(
        "unlabeled_cifar100",
        "--pool",
        root,
        *options,
        "--size-factor",
        1,
        "--imbalance-ratio-unlabeled",
        1,
    )
    assert rest.classes == labeled.classes == [f"class_{label:03d}" for label in range(100)]
    every = {row[0]: row for row in triples(labeled) + triples(rest)}
    assert (
        len(every) == 400
        and len(triples(labeled)) == 101
        and set(triples(drawn)) <= set(triples(rest))
    )
    np.testing.assert_array_equal(
        np.bincount(drawn.splits["train"].columns["hidden_label"]), [1] * 100
    )
    fill(tmp_path, {"pool.pickle": b""})
    with pytest.raises(UserError, match="pool.pickle' holds neither cifar-100-python/"):
        source_of("unlabeled_cifar100", "--pool", tmp_path / "pool.pickle")


# --- --largest


def test_the_largest_class_can_be_smaller_than_the_published_one(cifar):
    source = source_of(
        "cifar10_lt",
        "--source",
        cifar["cifar10"]["official"],
        "--imbalance-ratio",
        4,
        "--largest",
        20,
    )
    np.testing.assert_array_equal(
        np.bincount(source.splits["train"].labels), imbalanced_counts(20, 10, 4)
    )
    assert (
        source.notes == ["--largest is not 5000: this is not the published subset"]
        and len(source.splits["test"].labels) == 10
    )
    with pytest.raises(UserError, match="5000 are needed"):
        source_of("cifar10_lt", "--source", cifar["cifar10"]["official"], "--imbalance-ratio", 4)


def test_fewer_labeled_images_are_the_first_of_the_published_draw(cifar):
    root = cifar["cifar10"]["official"]
    small, large = (
        triples(
            source_of("cifar10_lt", "--source", root, "--imbalance-ratio", 4, "--largest", largest)
        )
        for largest in (20, 40)
    )
    assert set(small) < set(large)


def test_svhns_largest_class_and_that_of_its_d_u(tmp_path):
    digits = {
        f"{digit}/{number}.png": f"{digit}/{number}".encode()
        for digit in range(10)
        for number in range(12)
    }
    fill(
        tmp_path,
        {
            f"{split}/{name}": content
            for split in ("train", "test", "extra")
            for name, content in digits.items()
        },
    )
    source = source_of("svhn_lt", "--source", tmp_path, "--largest", 12, "--imbalance-ratio", 4)
    counts = imbalanced_counts(12, 10, 4)
    np.testing.assert_array_equal(
        np.bincount(source.splits["train"].labels), [counts[-1], *counts[:-1]]
    )
    assert source.notes == ["--largest is not 1000: this is not the published subset"]
    drawn = source_of(
        "unlabeled_svhn",
        "--pool",
        tmp_path,
        "--largest",
        12,
        "--imbalance-ratio",
        4,
        "--size-factor",
        0.9,
    ).splits["train"]
    expected = unlabeled_counts(sum(counts), 10, 4, 0.9)
    np.testing.assert_array_equal(
        np.bincount(drawn.columns["sourced_label"]), [expected[-1], *expected[:-1]]
    )


# --- ILSVRC2012

SYNSETS = {"n01440764": 40, "n01443537": 31, "n01484850": 29, "n01491361": 26}
SUBSET = ("--make-subset", "pareto", "--largest", 9, "--smallest", 2)
LISTED = {  # (synset, image) by split
    "train": [(0, 3), (0, 39), (1, 0), (2, 7), (3, 25), (3, 1)],
    "val": [(0, 4), (3, 2)],
}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory) -> dict[str, Path]:
    """Training images as folders and as the official tar, two validation images, and lists."""
    root = tmp_path_factory.mktemp("ilsvrc")
    pixels = iter(noise(sum(SYNSETS.values()) + 2, 4))
    train = {
        synset: {f"{synset}_{number}.JPEG": png(next(pixels)) for number in range(size)}
        for synset, size in SYNSETS.items()
    }
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": png(next(pixels)) for number in (1, 2)}
    fill(
        root / "folders" / "train",
        {
            f"{synset}/{name}": content
            for synset, images in train.items()
            for name, content in images.items()
        },
    )
    fill(root / "folders" / "val" / "n01440764", val)
    fill(root / "folders" / "train", {"contact_sheet.jpg": b"of no class"})
    tars = {f"{synset}.tar": tar_of(images) for synset, images in reversed(train.items())}
    kaggle = "ImageId,PredictionString\n" + "".join(
        f"{name[:-5]},n01440764 1 2 3 4\n" for name in val
    )
    fill(
        root / "official",
        {
            "ILSVRC2012_img_train.tar": tar_of(tars),
            "ILSVRC2012_img_val.tar": tar_of(val),
            "LOC_val_solution.csv": kaggle.encode(),
        },
    )
    write_lists(root / "lists", LISTED)
    return {layout: root / layout for layout in LAYOUTS} | {"lists": root / "lists"}


def write_lists(folder: Path, listed: dict[str, list[tuple[int, int]]]) -> Path:
    names = list(SYNSETS)
    for split, rows in listed.items():
        fill(
            folder,
            {
                f"ImageNet_LT_{split}.txt": (
                    "".join(
                        f"train/{names[label]}/{names[label]}_{image}.JPEG {label}\n"
                        for label, image in rows
                    ).encode()
                )
            },
        )
    fill(
        folder,
        {
            "ImageNet_LT_test.txt": (
                b"val/ILSVRC2012_val_00000001.JPEG 0\nval/ILSVRC2012_val_00000002.JPEG 0\n"
            )
        },
    )
    return folder


def every_training_image(folders: Path) -> list[tuple[str, int, bytes]]:
    return sorted(
        (
            f"{path.parent.name}/{path.stem}",
            list(SYNSETS).index(path.parent.name),
            path.read_bytes(),
        )
        for path in folders.glob("train/*/*.JPEG")
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [("--lists",), (*SUBSET, "--seed", 0), (*SUBSET, "--seed", 4)],
    ids=["lists", "seed 0", "seed 4"],
)
def test_imagenet_lt_and_its_rest_are_the_training_images(ilsvrc, layout, options):
    options = ("--lists", ilsvrc["lists"]) if options == ("--lists",) else options
    labeled = source_of("imagenet_lt", "--source", ilsvrc[layout], *options)
    rest = source_of("unlabeled_imagenet_lt", "--source", ilsvrc[layout], *options)
    assert (rest.name, rest.classes) == ("unlabeled_imagenet_lt", labeled.classes)
    assert sorted(
        triples(labeled) + triples(labeled, "val") + triples(rest)
    ) == every_training_image(ilsvrc["folders"])
    assert not set(labeled.splits["test"].keys) & set(rest.splits["train"].keys)


def test_the_rest_of_imagenet_lt_is_unlabeled_but_for_a_column(ilsvrc, tmp_path):
    source = source_of(
        "unlabeled_imagenet_lt", "--source", ilsvrc["official"], "--lists", ilsvrc["lists"]
    )
    manifest = assert_no_label_shows(source, tmp_path / "out")
    assert (
        len(manifest) == 126 - 8
        and "118 of the 118 training images that imagenet_lt with the same options leaves; it holds 8"
        in source.notes[-1]
    )
    names = list(SYNSETS)
    assert all(
        manifest.key(index).startswith(names[label])
        for index, label in enumerate(manifest.column("hidden_label").tolist())
    )


def test_the_rest_needs_no_validation_images(ilsvrc, tmp_path):
    (tmp_path / "train").symlink_to(ilsvrc["folders"] / "train")
    for options in (("--lists", ilsvrc["lists"]), SUBSET):
        whole, alone = (contents_of_rest(root, *options) for root in (ilsvrc["folders"], tmp_path))
        assert whole == alone


def contents_of_rest(root: Path, *options) -> list[tuple[str, int, bytes]]:
    return triples(source_of("unlabeled_imagenet_lt", "--source", root, *options))


@pytest.mark.parametrize("options", ["lists", "subset"])
def test_a_share_of_the_rest_is_drawn_with_the_seed(ilsvrc, options):
    options = ("--lists", ilsvrc["lists"]) if options == "lists" else SUBSET
    for layout in LAYOUTS:
        labeled = len(
            contents(source_of("imagenet_lt", "--source", ilsvrc[layout], *options))["train"]
        )
        every = contents_of_rest(ilsvrc[layout], *options)
        some, more = (
            contents_of_rest(ilsvrc[layout], *options, "--size-factor", factor)
            for factor in (0.5, 1.2)
        )
        assert (len(some), len(more)) == (round(0.5 * labeled), round(1.2 * labeled)) and set(
            some
        ) < set(more) < set(every)
        assert some == contents_of_rest(ilsvrc["official"], *options, "--size-factor", 0.5), (
            "in both layouts"
        )
    first, other = (
        contents_of_rest(
            ilsvrc["folders"], "--lists", ilsvrc["lists"], "--size-factor", 5, "--seed", seed
        )
        for seed in (0, 1)
    )
    assert first != other and {label for _, label, _ in first} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        ("20", r"118 training images are left and 120 are needed; lower --size-factor \(20\)"),
        ("0", "--size-factor must be more than 0"),
        ("-1", "--size-factor must be"),
        ("nan", "--size-factor must be"),
        ("inf", "--size-factor must be"),
    ],
)
def test_a_share_that_cannot_be_drawn_is_refused(ilsvrc, factor, message):
    with pytest.raises(UserError, match=message):
        contents_of_rest(ilsvrc["folders"], "--lists", ilsvrc["lists"], "--size-factor", factor)


def test_images_of_no_listed_class_have_no_hidden_label(ilsvrc, tmp_path):
    lists = write_lists(tmp_path / "lists", {"train": [(0, 1), (1, 2)], "val": [(1, 5)]})
    source = source_of("unlabeled_imagenet_lt", "--source", ilsvrc["folders"], "--lists", lists)
    manifest = assert_no_label_shows(source, tmp_path / "out")
    assert np.bincount(manifest.column("hidden_label") + 1).tolist() == [29 + 26, 39, 29]


def test_whatever_a_list_takes_from_the_training_images_is_left_out(ilsvrc, tmp_path):
    lists = write_lists(tmp_path, LISTED)
    (lists / "ImageNet_LT_val.txt").write_text("val/ILSVRC2012_val_00000001.JPEG 0\n")
    (lists / "ImageNet_LT_test.txt").write_text("train/n01484850/n01484850_20.JPEG 2\n")
    keys = {key for key, _, _ in contents_of_rest(ilsvrc["official"], "--lists", lists)}
    assert (
        len(keys) == 126 - 6 - 1
        and "n01484850/n01484850_20" not in keys
        and "n01440764/n01440764_4" in keys
    )


def test_lists_that_do_not_fit_the_source_are_refused(ilsvrc, tmp_path):
    lists = write_lists(
        tmp_path, LISTED | {"train": [(0, 99)] + [(label, 0) for label in range(4)]}
    )
    with pytest.raises(
        UserError, match="1 of the 5 images of .*ImageNet_LT_train.txt' do not exist"
    ):
        contents_of_rest(ilsvrc["folders"], "--lists", lists)
    with pytest.raises(UserError, match="--lists DIR .*or --make-subset pareto"):
        contents_of_rest(ilsvrc["folders"])
