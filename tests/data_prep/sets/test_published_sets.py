"""The published long-tailed sets, each from every layout that its images come in: counts, draws,
bytes, and what is refused.
"""

import hashlib
import io
import json
import pickle
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from data_prep.reading import lists
from data_prep.reading.subsets import Draw, imbalanced_counts, pareto_counts
from lt_train.data.manifest import shot_groups
from lt_train.errors import UserError
from tests.helpers.sources import (
    Attack,
    contents,
    fill,
    pixels_of,
    png,
    python2_pickle,
    source_of,
    touch,
)

# --- counts


@pytest.mark.parametrize(
    ("largest", "classes", "sizes"),
    [
        (5000, 10, {100: 12_406, 50: 13_996, 10: 20_431}),
        (500, 100, {100: 10_847, 50: 12_608, 10: 19_573}),
        (1000, 10, {100: 2_478, 50: 2_795, 10: 4_084}),
    ],
)
def test_exponential_counts_add_up_to_the_published_sizes(largest, classes, sizes):
    for ratio, size in sizes.items():
        counts = imbalanced_counts(largest, classes, ratio)
        assert sum(counts) == size and (counts[0], counts[-1]) == (largest, largest // ratio)
        assert counts == [
            int(largest * (1.0 / ratio) ** (label / (classes - 1.0))) for label in range(classes)
        ]


@pytest.mark.parametrize(("largest", "classes"), [(5000, 10), (500, 100), (1000, 10), (7, 5)])
@pytest.mark.parametrize("ratio", [100, 50, 10])
def test_step_counts_are_the_largest_and_the_smallest_for_half_of_the_classes_each(
    largest, classes, ratio
):
    large = classes // 2
    assert imbalanced_counts(largest, classes, ratio, "step") == large * [largest] + (
        classes - large
    ) * [int(largest * (1 / ratio))]


@pytest.mark.parametrize("kind", ["exp", "step"])
def test_ratio_1_keeps_the_balance(kind):
    assert imbalanced_counts(500, 100, 1, kind) == [500] * 100


@pytest.mark.parametrize("ratio", [0.5, 0, -1, float("nan"), float("inf")])
def test_an_impossible_ratio_is_refused(ratio):
    with pytest.raises(UserError, match="--imbalance-ratio"):
        imbalanced_counts(500, 100, ratio)


def test_the_pareto_counts_of_imagenet_lt():
    counts = np.array(pareto_counts(1280, 5, 1000))
    quantiles = [
        (1 - (rank + 0.2) / 1000) ** (-1 / 6) for rank in reversed(range(1000))
    ]  # the inverse of P(X <= x) = 1 - x^-6
    stretched = [5 + 1275 * (x - quantiles[-1]) / (quantiles[0] - quantiles[-1]) for x in quantiles]
    assert np.abs(counts - stretched).max() <= 0.5 + 1e-6
    assert (counts[0], counts[-1], counts.sum()) == (1280, 5, 116_079) and (
        np.diff(counts) <= 0
    ).all()
    assert {name: int(group.sum()) for name, group in shot_groups(counts).items()} == {
        "many_shot": 388,
        "medium_shot": 469,
        "few_shot": 143,
    }


@pytest.mark.parametrize(
    ("largest", "smallest", "classes"), [(100, 100, 7), (30, 1, 2), (1280, 5, 100)]
)
def test_pareto_counts_reach_both_ends(largest, smallest, classes):
    counts = pareto_counts(largest, smallest, classes)
    assert (len(counts), counts[0], counts[-1]) == (
        classes,
        largest,
        smallest,
    ) and counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("largest", "smallest"), [(5, 6), (5, 0), (0, 0), (5, -1)])
def test_impossible_ends_are_refused(largest, smallest):
    with pytest.raises(UserError, match="--smallest"):
        pareto_counts(largest, smallest, 10)


# --- ImageNet-LT

SYNSETS = {"n01440764": 40, "n01443537": 30, "n01484850": 28, "n01491361": 25}  # training images
VAL_IMAGES = 12
LAYOUTS = ["folders and flat val", "folders", "Kaggle", "tars"]
# as the published ones: training and validation images come from train/, test images from val/
LISTS = {
    "train": [("train/n01484850/n01484850_3.JPEG", 2), ("train/n01440764/n01440764_0.JPEG", 0), ("train/n01491361/n01491361_24.JPEG", 3),
              ("train/n01440764/n01440764_39.JPEG", 0), ("train/n01443537/n01443537_7.JPEG", 1)],
    "val": [("train/n01491361/n01491361_1.JPEG", 3), ("train/n01440764/n01440764_5.JPEG", 0)],
    "test": [(f"val/ILSVRC2012_val_{number:08d}.JPEG", number % 4) for number in range(1, VAL_IMAGES + 1)],
}  # fmt: skip


def tar_of(files: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def image_of(name: str) -> bytes:
    """What stands for the image: nothing is decoded here.

    Of several lengths, also beyond a tar's block.
    """
    return name.encode() * (1 + sum(name.encode()) % 60)


TRAIN = {
    synset: {f"{synset}_{number}.JPEG": image_of(f"{synset}_{number}") for number in range(size)}
    for synset, size in SYNSETS.items()
}
VAL = {
    f"ILSVRC2012_val_{number:08d}.JPEG": image_of(f"val {number}")
    for number in range(1, VAL_IMAGES + 1)
}


def val_class(name: str) -> str:
    return list(SYNSETS)[int(name[-13:-5]) % 4]


def make_ilsvrc(root: Path, layout: str) -> Path:
    train = {
        f"train/{synset}/{name}": content
        for synset, images in TRAIN.items()
        for name, content in images.items()
    }
    kaggle = "ImageId,PredictionString\n" + "".join(
        f"{name[:-5]},{val_class(name)} 1 2 30 40 {val_class(name)} 5 6 70 80\n" for name in VAL
    )
    if layout == "folders":
        fill(
            root,
            train | {f"val/{val_class(name)}/{name}": content for name, content in VAL.items()},
        )
        return root
    if layout == "folders and flat val":
        fill(root, train | {f"val/{name}": content for name, content in VAL.items()})
    elif layout == "Kaggle":
        fill(
            root / "ILSVRC" / "Data" / "CLS-LOC",
            train | {f"val/{name}": content for name, content in VAL.items()},
        )
    else:
        outer = {f"{synset}.tar": tar_of(images) for synset, images in reversed(TRAIN.items())}
        fill(
            root, {"ILSVRC2012_img_train.tar": tar_of(outer), "ILSVRC2012_img_val.tar": tar_of(VAL)}
        )
    fill(root, {"LOC_val_solution.csv": kaggle.encode()})
    return root


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory) -> dict[str, Path]:
    """The same images in all layouts, and the lists beside them."""
    root = tmp_path_factory.mktemp("ilsvrc")
    write_lists(root / "lists", LISTS)
    return {layout: make_ilsvrc(root / layout.replace(" ", "_"), layout) for layout in LAYOUTS} | {
        "lists": root / "lists"
    }


def write_lists(folder: Path, rows: dict[str, list[tuple[str, int]]]) -> Path:
    fill(
        folder,
        {
            f"ImageNet_LT_{split}.txt": (
                "".join(f"{name} {label}\n" for name, label in found).encode()
            )
            for split, found in rows.items()
        },
    )
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_imagenet_lt_has_the_listed_keys_labels_and_bytes_from_every_layout(ilsvrc, layout):
    source = source_of("imagenet_lt", "--source", ilsvrc[layout], "--lists", ilsvrc["lists"])
    assert (source.name, source.classes) == ("imagenet_lt", list(SYNSETS))
    every = VAL | {name: content for images in TRAIN.values() for name, content in images.items()}
    assert contents(source) == {
        split: [
            (name.removeprefix("train/").removesuffix(".JPEG"), label, every[name.split("/")[-1]])
            for name, label in rows
        ]
        for split, rows in LISTS.items()
    }
    assert all(Path(file).is_file() for file in source.files)
    assert len(source.files) == (2 if layout == "tars" else sum(map(len, LISTS.values())))


def test_a_list_may_name_the_class_folder_of_a_validation_image(ilsvrc, tmp_path):
    rows = LISTS | {
        "test": [
            (f"val/{val_class(name.split('/')[1])}/{name.split('/')[1]}", label)
            for name, label in LISTS["test"]
        ]
    }
    for layout in LAYOUTS:
        found = contents(
            source_of(
                "imagenet_lt", "--source", ilsvrc[layout], "--lists", write_lists(tmp_path, rows)
            )
        )["test"]
        assert [content for _, _, content in found] == list(VAL.values())


def test_other_lists_are_noted_as_not_the_published_ones(ilsvrc):
    notes = source_of(
        "imagenet_lt", "--source", ilsvrc["folders"], "--lists", ilsvrc["lists"]
    ).notes
    assert [note.split(" (")[0] for note in notes] == [
        f"ImageNet_LT_{split}.txt is NOT the published list of that name" for split in LISTS
    ]


def test_published_lists_are_known_by_their_git_blob_hash_and_not_by_their_name(
    ilsvrc, monkeypatch, tmp_path
):
    """Of 'hello world' and a newline, `git hash-object` gives
    3b18e512dba79e4c8300dd08aeb37f8e728b8dad.
    """
    content = (ilsvrc["lists"] / "ImageNet_LT_val.txt").read_bytes()
    own = hashlib.sha1(f"blob {len(content)}".encode() + bytes(1) + content).hexdigest()
    monkeypatch.setattr(
        lists,
        "PUBLISHED",
        {"Hello.txt": "3b18e512", "ImageNet_LT_val.txt": own, "ImageNet_LT_test.txt": own[::-1]},
    )
    fill(tmp_path, {"renamed.txt": b"hello world\n", "Hello.txt": b"hello world"})
    assert (
        lists.check_published(tmp_path / "renamed.txt") == "renamed.txt is the published Hello list"
    )
    assert "Hello.txt is NOT the published" in lists.check_published(tmp_path / "Hello.txt")
    train, val, test = source_of(
        "imagenet_lt", "--source", ilsvrc["tars"], "--lists", ilsvrc["lists"]
    ).notes
    assert train == "ImageNet_LT_train.txt is not one of the published lists"
    assert val == "ImageNet_LT_val.txt is the published ImageNet_LT_val list"
    assert "is NOT the published" in test and own[::-1][:8] in test


def test_a_lists_hashes_are_git_blob_hashes():
    assert all(re.fullmatch("[0-9a-f]{8}|[0-9a-f]{40}", sha) for sha in lists.PUBLISHED.values())
    assert {name.split("_")[0] for name in lists.PUBLISHED} == {
        "ImageNet",
        "iNaturalist18",
        "Places",
    }


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_list_is_named(ilsvrc, tmp_path, split):
    write_lists(tmp_path, {name: rows for name, rows in LISTS.items() if name != split})
    with pytest.raises(UserError, match=f"has no ImageNet_LT_{split}.txt"):
        source_of("imagenet_lt", "--source", ilsvrc["folders"], "--lists", tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_images_are_counted_and_the_first_ten_named(ilsvrc, tmp_path, layout):
    gone = [f"train/n01440764/gone_{number}.JPEG" for number in range(13)]
    write_lists(tmp_path, LISTS | {"train": LISTS["train"] + [(name, 0) for name in gone]})
    with pytest.raises(UserError) as error:
        source_of("imagenet_lt", "--source", ilsvrc[layout], "--lists", tmp_path)
    assert str(error.value).startswith(
        "13 of the 18 images of "
    ) and "ImageNet_LT_train.txt" in str(error.value)
    assert str(error.value).endswith(", ".join(gone[:10]) + ", ...") and gone[10] not in str(
        error.value
    )


@pytest.mark.parametrize(
    ("split", "line", "message"),
    [
        (
            "train",
            "train/../train/n01440764/n01440764_1.JPEG 0",
            "line 1.*leaves the source folder",
        ),
        ("train", "/etc/passwd 0", "must all begin with train/ or all with val/"),
        ("train", "train//etc/passwd 0", "1 of the 1 images"),
        ("train", "train 0", "1 of the 1 images"),
        ("train", "train/ 0", "1 of the 1 images"),
        ("val", "val/ILSVRC2012_val_00000001.JPEG 1", "1 val image.*label out of range, first 1"),
        (
            "test",
            "train/n01440764/n01440764_1.JPEG 0\nval/ILSVRC2012_val_00000001.JPEG 0",
            "must all begin",
        ),
    ],
)
def test_a_bad_line_in_a_published_list_is_refused(ilsvrc, tmp_path, split, line, message):
    rows = {
        name: [(f"train/n01440764/n01440764_{number}.JPEG", 0)]
        for number, name in enumerate(("train", "val", "test"))
    }
    (write_lists(tmp_path, rows) / f"ImageNet_LT_{split}.txt").write_text(line + "\n")
    for layout in LAYOUTS:
        with pytest.raises(UserError, match=message):
            source_of("imagenet_lt", "--source", ilsvrc[layout], "--lists", tmp_path)


@pytest.mark.parametrize("arguments", [[], ["--lists", "x", "--make-subset", "pareto"]])
def test_either_lists_or_a_new_subset(ilsvrc, arguments):
    with pytest.raises(UserError, match="--lists DIR .*or --make-subset pareto"):
        source_of("imagenet_lt", "--source", ilsvrc["folders"], *arguments)


def test_a_source_without_imagenet_is_refused(tmp_path):
    touch(tmp_path, "train/n01440764/1.JPEG")
    for root, message in (
        (tmp_path / "nowhere", "there is no folder"),
        (tmp_path, "neither val/ nor ILSVRC2012_img_val.tar"),
    ):
        with pytest.raises(UserError, match=message):
            source_of("imagenet_lt", "--source", root, "--make-subset", "pareto")


# --- damaged tars


def inner_tar_cut(cut: Callable[[bytes], bytes]) -> bytes:
    """The training tar with its second inner tar cut off, and whole itself."""
    inner = {f"{synset}.tar": tar_of(images) for synset, images in TRAIN.items()}
    return tar_of(inner | {"n01443537.tar": cut(inner["n01443537.tar"])})


def second_header(content: bytes) -> int:
    """Where the second file of a tar begins."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return tar.getmembers()[1].offset


CUTS = {
    "within a file": lambda content: content[: second_header(content) + 515],
    "within a header": lambda content: content[: second_header(content) + 100],
    "between files": lambda content: content[: second_header(content)],
    "within the first header": lambda content: content[:100],
    "to nothing": lambda content: b"",
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("which", ["train", "val", "inner"])
def test_a_truncated_tar_is_named_once(ilsvrc, tmp_path, which, cut):
    train, val = (ilsvrc["tars"] / f"ILSVRC2012_img_{half}.tar" for half in ("train", "val"))
    victim, other = (val, train) if which == "val" else (train, val)
    damaged = inner_tar_cut(CUTS[cut]) if which == "inner" else CUTS[cut](victim.read_bytes())
    fill(tmp_path, {victim.name: damaged, other.name: other.read_bytes()})
    with pytest.raises(UserError) as error:
        source_of("imagenet_lt", "--source", tmp_path, "--lists", ilsvrc["lists"])
    assert str(error.value).count(str(tmp_path / victim.name)) == 1 and "tar" in str(error.value)


@pytest.mark.parametrize(
    "content", [b"no tar at all" * 100, tar_of(VAL)[:512] + b"\xff" * 4096, bytes(100)]
)
def test_what_is_no_tar_is_named(ilsvrc, tmp_path, content):
    fill(tmp_path, {"ILSVRC2012_img_train.tar": content, "ILSVRC2012_img_val.tar": tar_of(VAL)})
    with pytest.raises(UserError, match="ILSVRC2012_img_train.tar"):
        source_of("imagenet_lt", "--source", tmp_path, "--lists", ilsvrc["lists"])


def test_a_damaged_header_does_not_end_a_tar_early(ilsvrc, tmp_path):
    """tarfile stops there without a word."""
    content = bytearray(tar_of(VAL))
    content[second_header(bytes(content)) + 150] ^= 1  # its checksum
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert len(tar.getmembers()) == 1
    train = (ilsvrc["tars"] / "ILSVRC2012_img_train.tar").read_bytes()
    fill(tmp_path, {"ILSVRC2012_img_train.tar": train, "ILSVRC2012_img_val.tar": bytes(content)})
    with pytest.raises(UserError, match="ILSVRC2012_img_val.tar' is truncated or damaged"):
        source_of("imagenet_lt", "--source", tmp_path, "--lists", ilsvrc["lists"])


# --- a new subset of ImageNet

SUBSET = ("--make-subset", "pareto", "--largest", 18, "--smallest", 2)


def test_a_new_subset_is_the_same_from_every_layout_and_noted_as_new(ilsvrc):
    found = [
        source_of("imagenet_lt", "--source", ilsvrc[layout], *SUBSET, "--seed", 3)
        for layout in LAYOUTS
    ]
    assert all(
        contents(source) == contents(found[0]) and source.classes == list(SYNSETS)
        for source in found[1:]
    )
    assert all(
        "NOT the published ImageNet-LT" in source.notes[0]
        and "18 to 2 a class, seed 3" in source.notes[0]
        for source in found
    )


@pytest.mark.parametrize("folder", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_labels_are_found_from_any_of_its_folders(ilsvrc, folder):
    expected, found = (
        contents(source_of("imagenet_lt", "--source", root, *SUBSET))
        for root in (ilsvrc["folders"], ilsvrc["Kaggle"] / folder)
    )
    assert found == expected


def test_a_new_subset_has_pareto_counts_20_for_validation_and_ilsvrcs_validation_images_as_test(
    ilsvrc,
):
    found = contents(source_of("imagenet_lt", "--source", ilsvrc["folders"], *SUBSET))
    labels = {split: [label for _, label, _ in rows] for split, rows in found.items()}
    assert sorted(np.bincount(labels["train"]), reverse=True) == pareto_counts(
        18, 2, 4
    ) and pareto_counts(18, 2, 4)[0::3] == [18, 2]
    np.testing.assert_array_equal(np.bincount(labels["val"]), [20] * 4)
    assert not {key for key, _, _ in found["train"]} & {key for key, _, _ in found["val"]}
    for split in ("train", "val"):
        for key, label, content in found[split]:
            synset, name = key.split("/")
            assert (synset, content) == (list(SYNSETS)[label], TRAIN[synset][f"{name}.JPEG"])
    assert found["test"] == [
        (f"val/{name[:-5]}", list(SYNSETS).index(val_class(name)), content)
        for name, content in VAL.items()
    ]


def test_a_new_subset_follows_from_the_seed(ilsvrc):
    first, again, other = (
        contents(source_of("imagenet_lt", "--source", ilsvrc["folders"], *SUBSET, "--seed", seed))
        for seed in (5, 5, 6)
    )
    assert first == again and first["train"] != other["train"] and first["test"] == other["test"]


def test_large_classes_go_where_there_are_enough_images(ilsvrc):
    """20 + 20 images are in the first class only, whatever the seed; 21 + 20 in none."""
    options = ["--source", ilsvrc["folders"], "--make-subset", "pareto", "--smallest", 1]
    for seed in range(5):
        found = source_of("imagenet_lt", *options, "--largest", 20, "--seed", seed)
        assert np.bincount(found.splits["train"].labels)[0] == 20
    with pytest.raises(UserError, match="21 training and 20 validation images; lower --largest"):
        source_of("imagenet_lt", *options, "--largest", 21)


def test_a_file_beside_the_classes_is_no_class(tmp_path):
    root = make_ilsvrc(tmp_path, "folders")
    fill(root, {"train/contact_sheet.jpg": b"x", "train/n01440764/README.txt": b"x"})
    assert source_of("imagenet_lt", "--source", root, *SUBSET).classes == list(SYNSETS)


def test_validation_images_without_a_class_are_refused(tmp_path):
    root = make_ilsvrc(tmp_path, "folders and flat val")
    solution = root / "LOC_val_solution.csv"
    whole = solution.read_text()
    solution.write_text("\n".join(whole.split("\n")[:-3]))
    with pytest.raises(
        UserError, match=r"2 images of .*val' have no class: .*LOC_val_solution.csv \(Kaggle\)"
    ):
        source_of("imagenet_lt", "--source", root, *SUBSET)
    solution.write_bytes(whole.encode() + b"\xff\xfe,x\n")
    with pytest.raises(UserError, match="cannot read .*LOC_val_solution.csv"):
        source_of("imagenet_lt", "--source", root, *SUBSET)
    solution.unlink()
    with pytest.raises(UserError, match="12 images of .*have no class"):
        source_of("imagenet_lt", "--source", root, *SUBSET)


def test_a_source_without_training_images_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    touch(tmp_path, "val/n01440764/1.JPEG")
    with pytest.raises(UserError, match="there are no classes with images in .*train"):
        source_of("imagenet_lt", "--source", tmp_path, *SUBSET)


# --- iNaturalist 2018

INAT = {  # place -> label
    "train": {
        "train_val2018/Plantae/1/b.jpg": 1,
        "train_val2018/Aves/0/a.jpg": 0,
        "train_val2018/Plantae/1/c d.jpg": 1,
        "train_val2018/Aves/2/\N{SNOWMAN}.jpg": 2,
        **{f"train_val2018/Aves/0/{number}.jpg": 0 for number in range(7)},
    },
    "test": {"train_val2018/Aves/2/v.jpg": 2, "train_val2018/Aves/0/w.jpg": 0},
}


def rows_of(listed: dict[str, dict[str, int]]) -> dict[str, list[tuple[str, int, bytes]]]:
    """Key (class folder and file name), label and content of files that hold their own names."""
    return {
        split: [
            ("/".join(name.removesuffix(".jpg").split("/")[-2:]), label, name.encode())
            for name, label in rows.items()
        ]
        for split, rows in listed.items()
    }


def make_inat(root: Path) -> Path:
    fill(root, {name: name.encode() for rows in INAT.values() for name in rows})
    for split, file in (("train", "train2018.json"), ("test", "val2018.json")):
        ids = {name: 1000 * (split == "test") + 7 * place for place, name in enumerate(INAT[split])}
        content = {
            "info": {"year": 2018},
            "images": [
                {"id": ids[name], "file_name": name, "width": 800, "height": 600}
                for name in INAT[split]
            ],
            "annotations": [
                {"id": ids[name], "image_id": ids[name], "category_id": label}
                for name, label in reversed(INAT[split].items())
            ],
            "categories": [
                {"id": label, "name": f"species {label}", "supercategory": "x"}
                for label in (2, 0, 1)
            ],
        }
        (root / file).write_text(json.dumps(content))
    return root


def make_inat_lists(folder: Path, inat: dict[str, dict[str, int]] = INAT) -> Path:
    names = {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"}
    fill(
        folder,
        {
            names[split]: "".join(f"{name} {label}\n" for name, label in rows.items()).encode()
            for split, rows in inat.items()
        },
    )
    return folder


def test_inaturalist_is_the_same_from_json_and_from_lists(tmp_path):
    root = make_inat(tmp_path / "inat")
    from_json = source_of("inat18", "--source", root)
    from_lists = source_of(
        "inat18", "--source", root, "--lists", make_inat_lists(tmp_path / "lists")
    )
    assert contents(from_json) == contents(from_lists) == rows_of(INAT)
    assert (from_json.classes, from_lists.classes) == (
        ["species 0", "species 1", "species 2"],
        ["0", "1", "2"],
    )
    assert (
        any("validation images are the split 'test'" in note for note in from_json.notes)
        and from_json.notes[-1] == from_lists.notes[-1]
    )
    assert sum("NOT the published list" in note for note in from_lists.notes) == 2


def test_lists_beside_the_images_are_found(tmp_path):
    root = make_inat(tmp_path)
    expected = contents(source_of("inat18", "--source", root))
    make_inat_lists(root)
    (root / "val2018.json").unlink()
    assert contents(source_of("inat18", "--source", root)) == expected


def test_a_val_fraction_of_inaturalist_comes_from_training_images(tmp_path):
    root = make_inat(tmp_path)
    whole, parts = (
        contents(source_of("inat18", "--source", root, "--val-fraction", share))
        for share in (0, 0.5)
    )
    assert sorted(parts) == ["test", "train", "val"] and parts["test"] == whole["test"]
    assert sorted(parts["train"] + parts["val"]) == sorted(whole["train"])
    assert np.bincount([label for _, label, _ in parts["val"]], minlength=3).tolist() == [4, 1, 0]
    with pytest.raises(UserError, match="has a test split already"):
        source_of("inat18", "--source", root, "--test-fraction", 0.5)


def edited(content: dict, **changes) -> bytes:
    return json.dumps(content | changes).encode()


def recategorized(
    content: dict, change: Callable[[int], float | None], number: int | None = None
) -> bytes:
    """With the categories of the first ``number`` annotations changed."""
    rows = content["annotations"]
    return edited(
        content,
        annotations=[row | {"category_id": change(row["category_id"])} for row in rows[:number]]
        + rows[len(rows[:number]) :],
    )


JSON_MISTAKES = {
    "cut off": lambda content: json.dumps(content).encode()[:-20],
    "no object": lambda content: b"[1, 2]",
    "no images": lambda content: edited(content, images=[]),
    "no annotations": (
        lambda content: json.dumps(
            {key: value for key, value in content.items() if key != "annotations"}
        ).encode()
    ),
    "an image without annotation": lambda content: edited(
        content, annotations=content["annotations"][1:]
    ),
    "not UTF-8": lambda content: b'{"images": "\xff"}',
    "endless nesting": lambda content: b'{"images": ' + b"[" * 100_000,
    "a category of any size": lambda content: recategorized(content, lambda label: 10**30),
    "an infinite category": lambda content: recategorized(content, lambda label: float("inf")),
    "no category": lambda content: recategorized(content, lambda label: None),
    "categories from 1": lambda content: recategorized(content, lambda label: label + 1),
    "a negative category": lambda content: recategorized(content, lambda label: -1, 1),
    "a path that leaves": lambda content: edited(
        content, images=[row | {"file_name": "../x.jpg"} for row in content["images"]]
    ),
    "a path elsewhere": lambda content: edited(
        content, images=[row | {"file_name": "/etc/passwd"} for row in content["images"]]
    ),
}


@pytest.mark.parametrize("mistake", JSON_MISTAKES)
def test_a_bad_annotation_file_is_refused(tmp_path, mistake):
    touch(tmp_path, "x.jpg")
    file = make_inat(tmp_path / "inat") / "train2018.json"
    file.write_bytes(JSON_MISTAKES[mistake](json.loads(file.read_text())))
    messages = {
        "a path that leaves": "train2018.json: the path '../x.jpg' leaves",
        "a path elsewhere": "/etc/passwd.*lies outside",
    }
    with pytest.raises(UserError, match=messages.get(mistake, "train2018.json")):
        source_of("inat18", "--source", tmp_path / "inat")


def test_inaturalist_without_annotations_or_images_is_refused(tmp_path):
    root = make_inat(tmp_path / "inat")
    for name in list(INAT["train"])[:3]:
        (root / name).unlink()
    with pytest.raises(UserError, match="3 of the 11 images of .*train2018.json.*Plantae/1/b.jpg"):
        source_of("inat18", "--source", root)
    (root / "train2018.json").unlink()
    with pytest.raises(
        UserError, match="has neither train2018.json and val2018.json nor iNaturalist18_train.txt"
    ):
        source_of("inat18", "--source", root)


# --- Places-LT

PLACES = {
    "train": {"train/airfield/1.jpg": 0, "train/zoo/1.jpg": 1, "train/airfield/2.jpg": 0},
    "val": {"val/airfield/9.jpg": 0},
    "test": {"val_256/Places365_val_00000001.jpg": 1, "val_256/Places365_val_00000002.jpg": 0},
}


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    """The images and the lists."""
    fill(tmp_path / "images", {name: name.encode() for rows in PLACES.values() for name in rows})
    rows = {
        f"Places_LT_{split}.txt": (
            "".join(f"{name} {label}\n" for name, label in rows.items()).encode()
        )
        for split, rows in PLACES.items()
    }
    fill(tmp_path / "lists", rows)
    return tmp_path / "images", tmp_path / "lists"


def test_places_lt_has_the_listed_images(places):
    source = source_of("places_lt", "--source", places[0], "--lists", places[1])
    assert (source.name, source.classes) == ("places_lt", ["airfield", "zoo"])
    assert contents(source) == rows_of(PLACES)
    assert [note[:15] for note in source.notes] == [
        "Places_LT_train",
        "Places_LT_val.t",
        "Places_LT_test.",
    ]


def test_places_lt_needs_its_training_list_and_images(places):
    images, folder = places
    (folder / "Places_LT_test.txt").unlink()
    assert list(source_of("places_lt", "--source", images, "--lists", folder).splits) == [
        "train",
        "val",
    ]
    (images / "val/airfield/9.jpg").unlink()
    with pytest.raises(UserError, match="1 of the 1 images of .*Places_LT_val.txt"):
        source_of("places_lt", "--source", images, "--lists", folder)
    (folder / "Places_LT_train.txt").unlink()
    with pytest.raises(
        UserError,
        match="has no Places_LT_train.txt; name the folder of the published lists with --lists",
    ):
        source_of("places_lt", "--source", images, "--lists", folder)


# --- CIFAR-100-LT


def published_subset(
    labels: np.ndarray, classes: list[int], img_max: int, imb_factor: float
) -> list[int]:
    """Cao et al. 2019 (CIFAR) and Yang and Xu 2020 (SVHN), retold: np.random.seed(0), then class
    after class.
    """
    random, indices = np.random.RandomState(0), []
    for place, label in enumerate(classes):
        found = np.where(labels == label)[0]
        random.shuffle(found)
        indices.extend(
            found[: int(img_max * imb_factor ** (place / (len(classes) - 1.0)))].tolist()
        )
    return indices


def test_draws_are_the_published_ones_index_for_index():
    cifar100 = np.random.default_rng(1).permutation(np.repeat(np.arange(100), 500))
    svhn = np.random.default_rng(2).permutation(np.repeat(np.arange(10), 1200))
    order = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    for ratio in (100, 50, 10):
        drawn = Draw(0).subset(cifar100, imbalanced_counts(500, 100, ratio))
        np.testing.assert_array_equal(
            drawn, published_subset(cifar100, [*range(100)], 500, 1 / ratio)
        )
        drawn = Draw(0).subset(svhn, imbalanced_counts(1000, 10, ratio), order)
        np.testing.assert_array_equal(drawn, published_subset(svhn, order, 1000, 1 / ratio))


NAMES = [f"class_{label:03d}" for label in range(100)]
RATIO = 500  # leaves the smallest class of CIFAR-100 one image


@dataclass(frozen=True)
class Small:
    """A stand-in with little more than ``RATIO`` needs."""

    labels: np.ndarray
    pixels: np.ndarray  # (N, 32, 32, 3)
    official: Path
    folders: Path
    test_labels: np.ndarray
    test_pixels: np.ndarray


def noise(labels: np.ndarray, seed: int) -> np.ndarray:
    """Images in which a few pixels are noise, so that they are all different and quick to write."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((len(labels), 32, 32, 3), np.uint8)
    pixels[:, 3:5, 7] = generator.integers(0, 256, (len(labels), 2, 3), np.uint8)
    return pixels


def write_folders(root: Path, names: list[str], labels: np.ndarray, pixels: np.ndarray) -> None:
    """Class folders; within a class, files are in the order of ``labels``."""
    for label, name in enumerate(names):
        fill(
            root / name,
            {
                f"{rank:04d}.png": png(pixels[index])
                for rank, index in enumerate(np.flatnonzero(labels == label))
            },
        )


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory) -> Small:
    return make_cifar100(tmp_path_factory.mktemp("cifar100"), 500, RATIO)


def make_cifar100(root: Path, per_class: int, ratio: float) -> Small:
    """The official files; of few images, also the class folders."""
    sizes = [int(per_class * (1 / ratio) ** (label / 99)) + 1 for label in range(100)]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), sizes))
    test_labels = np.random.default_rng(1).permutation(np.repeat(np.arange(100), 2))
    found = {"train": (labels, noise(labels, 2)), "test": (test_labels, noise(test_labels, 3))}
    for split, (split_labels, pixels) in found.items():
        planes = pixels.transpose(0, 3, 1, 2).reshape(-1, 3072)
        batch = {
            "filenames": ["x.png"],
            "fine_labels": split_labels.tolist(),
            "coarse_labels": (split_labels // 5).tolist(),
            "data": planes,
        }
        fill(root / "official" / "cifar-100-python", {split: python2_pickle(batch)})
        if per_class < 500:
            write_folders(root / "folders" / split, NAMES, split_labels, pixels)
    fill(
        root / "official" / "cifar-100-python",
        {"meta": python2_pickle({"fine_label_names": NAMES, "coarse_label_names": ["fish"]})},
    )
    return Small(labels, found["train"][1], root / "official", root / "folders", *found["test"])


def assert_published_subset(source, which: Small, names: list[str], expected: list[int]) -> None:
    """The training split is ``expected`` of the official order; the test split is whole, in any
    order within the same keys.
    """
    train, test = source.splits["train"], source.splits["test"]
    np.testing.assert_array_equal(train.labels, which.labels[expected])
    place = {
        int(index): rank
        for label in range(len(names))
        for rank, index in enumerate(np.flatnonzero(which.labels == label))
    }
    assert train.keys == [f"{names[which.labels[index]]}/{place[index]:04d}" for index in expected]
    for number in range(0, len(expected), 37):
        np.testing.assert_array_equal(
            pixels_of(train.images.read(number)), which.pixels[expected[number]]
        )
    indices = [np.flatnonzero(which.test_labels == label) for label in range(len(names))]
    assert len(test.labels) == len(which.test_labels) == len(set(test.keys))
    for number, (key, label) in enumerate(zip(test.keys, test.labels.tolist())):
        name, rank = key.split("/")
        assert name == names[label]
        if number % 11 == 0:
            np.testing.assert_array_equal(
                pixels_of(test.images.read(number)), which.test_pixels[indices[label][int(rank)]]
            )


def test_cifar100_lt_is_the_published_subset(cifar100):
    source = source_of("cifar100_lt", "--source", cifar100.official, "--imbalance-ratio", RATIO)
    assert (source.name, source.classes, source.notes) == ("cifar100_lt", NAMES, [])
    assert_published_subset(
        source, cifar100, NAMES, published_subset(cifar100.labels, [*range(100)], 500, 1 / RATIO)
    )


def test_cifar100_lt_is_the_same_in_both_layouts(tmp_path):
    """With 20 images of the largest class in place of 500: files take time to write."""
    small = make_cifar100(tmp_path, 20, 20)
    for root in (small.official, small.folders):
        source = source_of(
            "cifar100_lt", "--source", root, "--imbalance-ratio", 20, "--largest", 20
        )
        assert source.classes == NAMES
        assert_published_subset(
            source, small, NAMES, published_subset(small.labels, [*range(100)], 20, 1 / 20)
        )


def test_cifar100s_files_may_lie_in_the_source_itself_and_be_of_python_3(cifar100, tmp_path):
    for file in (cifar100.official / "cifar-100-python").iterdir():
        content = pickle.loads(file.read_bytes(), encoding="bytes")
        text = {
            key.decode(): [item.decode() for item in value] if key.endswith(b"names") else value
            for key, value in content.items()
        }
        (tmp_path / file.name).write_bytes(pickle.dumps(text))
    sources = [
        source_of("cifar100_lt", "--source", root, "--imbalance-ratio", RATIO)
        for root in (tmp_path, cifar100.official)
    ]
    assert (
        sources[0].classes == sources[1].classes
        and sources[0].splits["train"].keys == sources[1].splits["train"].keys
    )


def test_another_seed_is_another_subset_and_noted(cifar100):
    first, other = (
        source_of(
            "cifar100_lt", "--source", cifar100.official, "--imbalance-ratio", RATIO, "--seed", seed
        )
        for seed in (0, 1)
    )
    assert (
        first.splits["train"].keys != other.splits["train"].keys
        and first.splits["test"].keys == other.splits["test"].keys
    )
    assert "not the published subset" in other.notes[0] and not first.notes


def test_cifar100_must_have_100_classes(cifar100, tmp_path):
    for split in ("train", "test"):
        touch(tmp_path / "few", *(f"{split}/{name}/1.png" for name in NAMES[:99]))
        touch(tmp_path / "many", *(f"{split}/{name}/1.png" for name in [*NAMES, "more"]))
        fill(
            tmp_path / "meta",
            {split: (cifar100.official / "cifar-100-python" / split).read_bytes()},
        )
    (tmp_path / "meta" / "meta").write_bytes(pickle.dumps({"fine_label_names": NAMES[:42]}))
    for root, number in (("few", 99), ("many", 101), ("meta", 42)):
        with pytest.raises(UserError, match=f"has {number} classes, not the 100 of cifar100"):
            source_of("cifar100_lt", "--source", tmp_path / root, "--imbalance-ratio", RATIO)


@pytest.mark.parametrize("victim", ["train", "test", "meta"])
def test_a_cifar100_pickle_that_would_run_code_is_refused_and_runs_none(cifar100, tmp_path, victim):
    fill(
        tmp_path,
        {
            file.name: file.read_bytes()
            for file in (cifar100.official / "cifar-100-python").iterdir()
        },
    )
    content = pickle.dumps(
        {"fine_labels": [], "fine_label_names": [], "data": Attack(tmp_path / "attacked")},
        protocol=2,
    )
    (tmp_path / victim).write_bytes(content)
    with pytest.raises(UserError, match=f"{victim}'.*refused"):
        source_of("cifar100_lt", "--source", tmp_path, "--imbalance-ratio", RATIO)
    assert not (tmp_path / "attacked").exists()
    pickle.loads(content)
    assert (tmp_path / "attacked").exists(), "it would have run"


GOOD = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "batch",
    [
        {"fine_labels": [0, 100], "data": GOOD},
        {"fine_labels": [0, -1], "data": GOOD},
        {"fine_labels": [0], "data": GOOD},
        {"fine_labels": [0, 10**30], "data": GOOD},
        {"fine_labels": [0, None], "data": GOOD},
        {"labels": [0, 1], "data": GOOD},
        {"fine_labels": [0, 1], "data": GOOD / 255},
        {"fine_labels": [0, 1], "data": GOOD[:, :-1]},
        {"fine_labels": [0, 1], "data": [[300] * 3072] * 2},
        {"fine_labels": [0, 1], "data": None},
    ],
)
def test_a_batch_of_something_else_is_named(cifar100, tmp_path, batch):
    fill(
        tmp_path,
        {
            file.name: file.read_bytes()
            for file in (cifar100.official / "cifar-100-python").iterdir()
        },
    )
    (tmp_path / "train").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match="train' is not a batch of cifar-100-python"):
        source_of("cifar100_lt", "--source", tmp_path, "--imbalance-ratio", RATIO)


@pytest.mark.parametrize(
    "content", [{"fine_label_names": 3}, {}, [1], {"fine_label_names": [b"\xff"] * 100}]
)
def test_a_bad_meta_file_is_named(cifar100, tmp_path, content):
    fill(
        tmp_path,
        {
            file.name: file.read_bytes()
            for file in (cifar100.official / "cifar-100-python").iterdir()
        },
    )
    (tmp_path / "meta").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="meta' does not name the classes"):
        source_of("cifar100_lt", "--source", tmp_path)


# --- SVHN-LT

DIGITS = [str(digit) for digit in range(10)]
SVHN_ORDER = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def write_mat(file: Path, labels: np.ndarray, pixels: np.ndarray, **options) -> None:
    """As SVHN's: X (32, 32, 3, N), and the digit 0 is called 10."""
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(
        file,
        {
            "X": pixels.transpose(1, 2, 3, 0),
            "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None],
        },
        **options,
    )


@pytest.fixture(scope="module")
def svhn(tmp_path_factory) -> Small:
    root = tmp_path_factory.mktemp("svhn")
    counts = [int(1000 * (1 / RATIO) ** (place / 9)) for place in range(10)]
    sizes = [counts[SVHN_ORDER.index(digit)] + 2 for digit in range(10)]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), sizes))
    test_labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 3))
    found = {"train": (labels, noise(labels, 4)), "test": (test_labels, noise(test_labels, 5))}
    for split, (split_labels, pixels) in found.items():
        write_mat(
            root / "official" / f"{split}_32x32.mat", split_labels, pixels, do_compression=True
        )
        write_folders(root / "folders" / split, DIGITS, split_labels, pixels)
    return Small(labels, found["train"][1], root / "official", root / "folders", *found["test"])


@pytest.mark.parametrize("layout", ["official", "folders"])
def test_svhn_lt_is_the_published_subset_in_both_layouts_with_0_as_its_tail(svhn, layout):
    source = source_of("svhn_lt", "--source", getattr(svhn, layout), "--imbalance-ratio", RATIO)
    assert (source.name, source.classes, source.notes) == ("svhn_lt", DIGITS, [])
    assert_published_subset(
        source, svhn, DIGITS, published_subset(svhn.labels, SVHN_ORDER, 1000, 1 / RATIO)
    )
    counts = np.bincount(source.splits["train"].labels)
    assert (counts[1], counts[0]) == (1000, 2) and (np.diff(counts[SVHN_ORDER]) < 0).all()


def test_svhn_lt_steps_down_after_the_digit_5(svhn, tmp_path):
    labels = np.repeat(np.arange(10), [10, *5 * [1000], *4 * [10]])
    write_mat(tmp_path / "train_32x32.mat", labels, noise(labels, 0))
    write_mat(tmp_path / "test_32x32.mat", labels[:5], noise(labels[:5], 0))
    source = source_of("svhn_lt", "--source", tmp_path, "--imbalance-type", "step")
    np.testing.assert_array_equal(
        np.bincount(source.splits["train"].labels), [10, *5 * [1000], *4 * [10]]
    )


def test_a_ratio_that_leaves_a_class_nothing_is_refused(svhn):
    with pytest.raises(
        UserError, match="class '0' would have no training images; lower --imbalance-ratio"
    ):
        source_of("svhn_lt", "--source", svhn.official, "--imbalance-ratio", 1001)


def test_svhn_with_too_few_images_is_refused(svhn):
    with pytest.raises(
        UserError,
        match="class '2' has .* training images and .* are needed: the source is not all of svhn",
    ):
        source_of("svhn_lt", "--source", svhn.official, "--imbalance-ratio", 100)


DIGIT_PIXELS, Y = np.zeros((32, 32, 3, 5), np.uint8), np.array([[1], [2], [10], [4], [5]], np.uint8)
BAD_MATS: dict[str, Callable[[bytes], bytes | dict]] = {
    "cut off": lambda content: content[:-500],
    "empty": lambda content: b"",
    "MATLAB 7.3": lambda content: b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512),
    "no X": lambda content: {"y": Y},
    "float X": lambda content: {"X": DIGIT_PIXELS / 255, "y": Y},
    "X of another shape": lambda content: {"X": DIGIT_PIXELS[:31], "y": Y},
    "y of another length": lambda content: {"X": DIGIT_PIXELS, "y": Y[:4]},
    "label 11": lambda content: {"X": DIGIT_PIXELS, "y": Y + 1},
}


@pytest.mark.parametrize("kind", BAD_MATS)
def test_a_damaged_mat_file_is_named(svhn, tmp_path, kind):
    fill(tmp_path, {file.name: file.read_bytes() for file in svhn.official.iterdir()})
    file = tmp_path / "test_32x32.mat"
    content = BAD_MATS[kind](file.read_bytes())
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        savemat(file, content)
    with pytest.raises(UserError, match="test_32x32.mat' is not a whole SVHN file"):
        source_of("svhn_lt", "--source", tmp_path, "--imbalance-ratio", RATIO)


def test_a_source_without_svhn_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither train_32x32.mat nor a folder train/"):
        source_of("svhn_lt", "--source", tmp_path)
    touch(tmp_path, "train/10/1.png")
    with pytest.raises(UserError, match="class folder '10' is not among"):
        source_of("svhn_lt", "--source", tmp_path)
