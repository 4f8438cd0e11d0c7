"""The training images that ImageNet-LT leaves, as an unlabeled set."""

from pathlib import Path

import numpy as np
import pytest

from lt_train.errors import UserError
from tests.helpers.sources import fill, png, source_of, tar_of, triples
from tests.helpers.stand_ins import all_different, assert_no_label_shows

LAYOUTS = ["official", "folders"]
SYNSETS = {"n01440764": 40, "n01443537": 31, "n01484850": 29, "n01491361": 26}
SUBSET = ("--make-subset", "pareto", "--largest", 9, "--smallest", 2)
LISTED = {  # (synset, image) by split
    "train": [(0, 3), (0, 39), (1, 0), (2, 7), (3, 25), (3, 1)],
    "val": [(0, 4), (3, 2)],
}


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory) -> dict[str, Path]:
    """Training images as folders and as the official tar, two validation images, and lists."""
    root = tmp_path_factory.mktemp("ilsvrc")
    pixels = iter(all_different(sum(SYNSETS.values()) + 2, 4))
    train, tars = root / "folders" / "train", {}
    for synset, size in SYNSETS.items():
        images = {f"{synset}_{number}.JPEG": png(next(pixels)) for number in range(size)}
        fill(train / synset, images)
        tars[f"{synset}.tar"] = tar_of(images)
    fill(train, {"contact_sheet.jpg": b"of no class"})
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": png(next(pixels)) for number in (1, 2)}
    fill(root / "folders" / "val" / "n01440764", val)
    lines = ["ImageId,PredictionString", *(f"{name[:-5]},n01440764 1 2 3 4" for name in val), ""]
    official = {
        "ILSVRC2012_img_train.tar": tar_of(dict(reversed(tars.items()))),
        "ILSVRC2012_img_val.tar": tar_of(val),
        "LOC_val_solution.csv": "\n".join(lines).encode(),
    }
    fill(root / "official", official)
    write_lists(root / "lists", LISTED)
    return {layout: root / layout for layout in LAYOUTS} | {"lists": root / "lists"}


def write_lists(folder: Path, listed: dict[str, list[tuple[int, int]]]) -> Path:
    test = [f"val/ILSVRC2012_val_{number:08d}.JPEG 0\n" for number in (1, 2)]
    fill(folder, {"ImageNet_LT_test.txt": "".join(test).encode()})
    names = list(SYNSETS)
    for split, rows in listed.items():
        lines = [
            f"train/{names[label]}/{names[label]}_{image}.JPEG {label}\n" for label, image in rows
        ]
        fill(folder, {f"ImageNet_LT_{split}.txt": "".join(lines).encode()})
    return folder


def every_training_image(folders: Path) -> list[tuple[str, int, bytes]]:
    found = []
    for path in folders.glob("train/*/*.JPEG"):
        synset = path.parent.name
        found.append((f"{synset}/{path.stem}", list(SYNSETS).index(synset), path.read_bytes()))
    return sorted(found)


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
    found = triples(labeled) + triples(labeled, "val") + triples(rest)
    assert sorted(found) == every_training_image(ilsvrc["folders"])
    assert not set(labeled.splits["test"].keys) & set(rest.splits["train"].keys)


def test_the_rest_of_imagenet_lt_is_unlabeled_but_for_a_column(ilsvrc, tmp_path):
    options = ("--source", ilsvrc["official"], "--lists", ilsvrc["lists"])
    source = source_of("unlabeled_imagenet_lt", *options)
    manifest = assert_no_label_shows(source, tmp_path / "out")
    assert len(manifest) == 126 - 8
    assert (
        "118 of the 118 training images that imagenet_lt with the same options leaves;"
        " it holds 8" in source.notes[-1]
    )
    names = list(SYNSETS)
    for index, label in enumerate(manifest.column("hidden_label").tolist()):
        assert manifest.key(index).startswith(names[label])


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
    expected = contents_of_rest(ilsvrc["official"], *options, "--size-factor", 0.5)
    for layout in LAYOUTS:
        root = ilsvrc[layout]
        labeled = len(triples(source_of("imagenet_lt", "--source", root, *options)))
        every = contents_of_rest(root, *options)
        some = contents_of_rest(root, *options, "--size-factor", 0.5)
        more = contents_of_rest(root, *options, "--size-factor", 1.2)
        assert (len(some), len(more)) == (round(0.5 * labeled), round(1.2 * labeled))
        assert set(some) < set(more) < set(every)
        assert some == expected, "in both layouts"
    options = ("--lists", ilsvrc["lists"], "--size-factor", 5, "--seed")
    first, other = (contents_of_rest(ilsvrc["folders"], *options, seed) for seed in (0, 1))
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
    assert len(keys) == 126 - 6 - 1
    assert "n01484850/n01484850_20" not in keys and "n01440764/n01440764_4" in keys


def test_lists_that_do_not_fit_the_source_are_refused(ilsvrc, tmp_path):
    train = [(0, 99), *((label, 0) for label in range(4))]
    lists = write_lists(tmp_path, LISTED | {"train": train})
    message = "1 of the 5 images of .*ImageNet_LT_train.txt' do not exist"
    with pytest.raises(UserError, match=message):
        contents_of_rest(ilsvrc["folders"], "--lists", lists)
    with pytest.raises(UserError, match="--lists DIR .*or --make-subset pareto"):
        contents_of_rest(ilsvrc["folders"])
