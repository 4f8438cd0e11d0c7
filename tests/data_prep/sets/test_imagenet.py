"""ImageNet-LT from every layout that ILSVRC2012 comes in, with the published lists or a new
subset.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.reading import lists
from data_prep.reading.source import Source
from data_prep.reading.subsets import pareto_counts
from lt_train.errors import UserError
from tests.helpers.sources import contents, copy_files, fill, source_of, tar_of, touch

SYNSETS = {"n01440764": 40, "n01443537": 30, "n01484850": 28, "n01491361": 25}  # training images
VAL_IMAGES = 12
LAYOUTS = ["folders and flat val", "folders", "Kaggle", "tars"]
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
# as the published ones: training and validation images come from train/, test images from val/
LISTS = {
    "train": [
        ("train/n01484850/n01484850_3.JPEG", 2),
        ("train/n01440764/n01440764_0.JPEG", 0),
        ("train/n01491361/n01491361_24.JPEG", 3),
        ("train/n01440764/n01440764_39.JPEG", 0),
        ("train/n01443537/n01443537_7.JPEG", 1),
    ],
    "val": [("train/n01491361/n01491361_1.JPEG", 3), ("train/n01440764/n01440764_5.JPEG", 0)],
    "test": [(f"val/ILSVRC2012_val_{n:08d}.JPEG", n % 4) for n in range(1, VAL_IMAGES + 1)],
}


def image_of(name: str) -> bytes:
    """What stands for the image: nothing is decoded here.

    Of several lengths, also beyond a tar's block.
    """
    return name.encode() * (1 + sum(name.encode()) % 60)


def images_of(synset: str) -> dict[str, bytes]:
    stems = [f"{synset}_{number}" for number in range(SYNSETS[synset])]
    return {f"{stem}.JPEG": image_of(stem) for stem in stems}


TRAIN = {synset: images_of(synset) for synset in SYNSETS}
VAL = {f"ILSVRC2012_val_{n:08d}.JPEG": image_of(f"val {n}") for n in range(1, VAL_IMAGES + 1)}


def val_class(name: str) -> str:
    return list(SYNSETS)[int(name[-13:-5]) % 4]


def make_ilsvrc(root: Path, layout: str) -> Path:
    if layout == "tars":
        outer = {f"{synset}.tar": tar_of(images) for synset, images in reversed(TRAIN.items())}
        fill(root, {TRAIN_TAR: tar_of(outer), VAL_TAR: tar_of(VAL)})
    else:
        images = root / "ILSVRC" / "Data" / "CLS-LOC" if layout == "Kaggle" else root
        for synset, contents in TRAIN.items():
            fill(images / "train" / synset, contents)
        for name, content in VAL.items():
            folder = val_class(name) if layout == "folders" else ""
            fill(images / "val" / folder, {name: content})
    if layout != "folders":
        lines = ["ImageId,PredictionString\n"]
        for name in VAL:
            synset = val_class(name)
            lines.append(f"{name[:-5]},{synset} 1 2 30 40 {synset} 5 6 70 80\n")
        fill(root, {"LOC_val_solution.csv": "".join(lines).encode()})
    return root


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory) -> dict[str, Path]:
    """The same images in all layouts, and the lists beside them."""
    root = tmp_path_factory.mktemp("ilsvrc")
    made = {layout: make_ilsvrc(root / layout.replace(" ", "_"), layout) for layout in LAYOUTS}
    return made | {"lists": write_lists(root / "lists", LISTS)}


def write_lists(folder: Path, rows: dict[str, list[tuple[str, int]]]) -> Path:
    for split, found in rows.items():
        lines = "".join(f"{name} {label}\n" for name, label in found)
        fill(folder, {f"ImageNet_LT_{split}.txt": lines.encode()})
    return folder


def listed(root: Path, lists: Path) -> Source:
    return source_of("imagenet_lt", "--source", root, "--lists", lists)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_imagenet_lt_has_the_listed_keys_labels_and_bytes_from_every_layout(ilsvrc, layout):
    source = listed(ilsvrc[layout], ilsvrc["lists"])
    assert (source.name, source.classes) == ("imagenet_lt", list(SYNSETS))
    every = VAL | {name: content for images in TRAIN.values() for name, content in images.items()}
    found = contents(source)
    assert found.keys() == LISTS.keys()
    for split, rows in LISTS.items():
        assert found[split] == [
            (name.removeprefix("train/").removesuffix(".JPEG"), label, every[name.split("/")[-1]])
            for name, label in rows
        ]
    assert all(Path(file).is_file() for file in source.files)
    assert len(source.files) == (2 if layout == "tars" else sum(map(len, LISTS.values())))


def test_clutter_in_folders_and_tars_is_passed_over_and_told(ilsvrc, tmp_path):
    first, second, *_ = SYNSETS
    clutter = {f"train/{first}/._{first}_0.JPEG": b"x", "train/.ipynb_checkpoints/1.JPEG": b"x"}
    clutter |= {"val/Thumbs.db": b"x", f"train/{second}/deep/1.JPEG": b"x"}
    fill(make_ilsvrc(tmp_path / "mac", "folders"), clutter)
    (tmp_path / "mac/train").rename(tmp_path / "mac/Training")
    (tmp_path / "mac/val").rename(tmp_path / "mac/valid")
    images = {f"{name}.tar": tar_of(found | {"._1.JPEG": b"x"}) for name, found in TRAIN.items()}
    others = VAL | {"README.txt": b"x"}
    fill(tmp_path / "tars", {TRAIN_TAR: tar_of(images), VAL_TAR: tar_of(others)})
    told = {
        "mac": f"2 hidden, 1 Thumbs.db, folder 'Training/{second}/deep' in a class folder",
        "tars": "4 hidden, 1 .txt",
    }
    for layout, words in told.items():
        source = listed(tmp_path / layout, ilsvrc["lists"])
        assert contents(source) == contents(listed(ilsvrc["folders"], ilsvrc["lists"]))
        assert source.passed.told() == f"passed over: {words}"
    options = ["--make-subset", "pareto", "--largest", 10]
    drawn = source_of("imagenet_lt", "--source", ilsvrc["folders"], *options)
    same = source_of("imagenet_lt", "--source", tmp_path / "mac", *options)
    assert contents(same) == contents(drawn)


def test_a_list_may_name_the_class_folder_of_a_validation_image(ilsvrc, tmp_path):
    rows = [(f"val/{val_class(name)}/{name}", int(name[-13:-5]) % 4) for name in VAL]
    write_lists(tmp_path, LISTS | {"test": rows})
    for layout in LAYOUTS:
        found = contents(listed(ilsvrc[layout], tmp_path))["test"]
        assert [content for _, _, content in found] == list(VAL.values())


def test_other_lists_are_noted_as_not_the_published_ones(ilsvrc):
    notes = listed(ilsvrc["folders"], ilsvrc["lists"]).notes
    for split, note in zip(LISTS, notes, strict=True):
        expected = f"ImageNet_LT_{split}.txt is NOT the published list of that name"
        assert note.split(" (")[0] == expected


def test_published_lists_are_known_by_their_git_blob_hash_and_not_by_their_name(
    ilsvrc, monkeypatch, tmp_path
):
    """Of 'hello world' and a newline, `git hash-object` gives
    3b18e512dba79e4c8300dd08aeb37f8e728b8dad.
    """
    content = (ilsvrc["lists"] / "ImageNet_LT_val.txt").read_bytes()
    own = hashlib.sha1(f"blob {len(content)}".encode() + bytes(1) + content).hexdigest()
    hashes = {"Hello": "3b18e512", "ImageNet_LT_val": own, "ImageNet_LT_test": own[::-1]}
    hashes = {f"{name}.txt": digest for name, digest in hashes.items()}
    monkeypatch.setattr(lists, "PUBLISHED", hashes)
    fill(tmp_path, {"renamed.txt": b"hello world\n", "Hello.txt": b"hello world"})
    fill(tmp_path, {"mine.txt": b"a.jpg 0"})
    files = [tmp_path / f"{name}.txt" for name in ("renamed", "mine", "Hello")]
    renamed, other = lists.check_published(files)
    assert renamed == "renamed.txt is the published Hello list"
    assert "Hello.txt is NOT the published" in other
    val, test = listed(ilsvrc["tars"], ilsvrc["lists"]).notes
    assert val == "ImageNet_LT_val.txt is the published ImageNet_LT_val list"
    assert "is NOT the published" in test and own[::-1][:8] in test


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_list_is_named(ilsvrc, tmp_path, split):
    write_lists(tmp_path, {name: rows for name, rows in LISTS.items() if name != split})
    with pytest.raises(UserError, match=f"has no ImageNet_LT_{split}.txt"):
        listed(ilsvrc["folders"], tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_images_are_counted_and_the_first_ten_named(ilsvrc, tmp_path, layout):
    gone = [f"train/n01440764/gone_{number}.JPEG" for number in range(13)]
    write_lists(tmp_path, LISTS | {"train": LISTS["train"] + [(name, 0) for name in gone]})
    with pytest.raises(UserError) as error:
        listed(ilsvrc[layout], tmp_path)
    message = str(error.value)
    assert message.startswith("13 of the 18 images of ") and "ImageNet_LT_train.txt" in message
    assert message.endswith(", ".join(gone[:10]) + ", ...") and gone[10] not in message


TRAIN_1, VAL_1 = "n01440764/n01440764_1.JPEG", "val/ILSVRC2012_val_00000001.JPEG"


@pytest.mark.parametrize(
    ("split", "line", "message"),
    [
        ("train", f"train/../train/{TRAIN_1} 0", "line 1.*leaves the source folder"),
        ("train", "/etc/passwd 0", "must all begin with train/ or all with val/"),
        ("train", "train//etc/passwd 0", "1 of the 1 images"),
        ("train", "train 0", "1 of the 1 images"),
        ("train", "train/ 0", "1 of the 1 images"),
        ("val", f"{VAL_1} 1", "1 val image.*label out of range, first 1"),
        ("test", f"train/{TRAIN_1} 0\n{VAL_1} 0", "must all begin"),
    ],
)
def test_a_bad_line_in_a_published_list_is_refused(ilsvrc, tmp_path, split, line, message):
    rows = {
        name: [(f"train/n01440764/n01440764_{number}.JPEG", 0)]
        for number, name in enumerate(("train", "val", "test"))
    }
    write_lists(tmp_path, rows)
    (tmp_path / f"ImageNet_LT_{split}.txt").write_text(line + "\n")
    for layout in LAYOUTS:
        with pytest.raises(UserError, match=message):
            listed(ilsvrc[layout], tmp_path)


@pytest.mark.parametrize("arguments", [[], ["--lists", "x", "--make-subset", "pareto"]])
def test_either_lists_or_a_new_subset(ilsvrc, arguments):
    with pytest.raises(UserError, match="--lists DIR .*or --make-subset pareto"):
        source_of("imagenet_lt", "--source", ilsvrc["folders"], *arguments)


def test_a_source_without_imagenet_is_refused(tmp_path):
    touch(tmp_path, "train/n01440764/1.JPEG")
    messages = {
        tmp_path / "nowhere": "there is no folder",
        tmp_path: "neither val/ nor ILSVRC2012_img_val.tar",
    }
    for root, message in messages.items():
        with pytest.raises(UserError, match=message):
            source_of("imagenet_lt", "--source", root, "--make-subset", "pareto")


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
    victim = VAL_TAR if which == "val" else TRAIN_TAR
    whole = (ilsvrc["tars"] / victim).read_bytes()
    copy_files(ilsvrc["tars"], tmp_path)
    damaged = inner_tar_cut(CUTS[cut]) if which == "inner" else CUTS[cut](whole)
    (tmp_path / victim).write_bytes(damaged)
    with pytest.raises(UserError) as error:
        listed(tmp_path, ilsvrc["lists"])
    assert str(error.value).count(str(tmp_path / victim)) == 1 and "tar" in str(error.value)


@pytest.mark.parametrize(
    "content", [b"no tar at all" * 100, tar_of(VAL)[:512] + b"\xff" * 4096, bytes(100)]
)
def test_what_is_no_tar_is_named(ilsvrc, tmp_path, content):
    fill(tmp_path, {TRAIN_TAR: content, VAL_TAR: tar_of(VAL)})
    with pytest.raises(UserError, match="ILSVRC2012_img_train.tar"):
        listed(tmp_path, ilsvrc["lists"])


def test_a_damaged_header_does_not_end_a_tar_early(ilsvrc, tmp_path):
    """tarfile stops there without a word."""
    content = bytearray(tar_of(VAL))
    content[second_header(bytes(content)) + 150] ^= 1  # its checksum
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert len(tar.getmembers()) == 1
    copy_files(ilsvrc["tars"], tmp_path)
    (tmp_path / VAL_TAR).write_bytes(content)
    with pytest.raises(UserError, match="ILSVRC2012_img_val.tar' is truncated or damaged"):
        listed(tmp_path, ilsvrc["lists"])


SUBSET = ("--make-subset", "pareto", "--largest", 18, "--smallest", 2)


def new_subset(root: Path, seed: int = 0) -> Source:
    return source_of("imagenet_lt", "--source", root, *SUBSET, "--seed", seed)


def test_a_new_subset_is_the_same_from_every_layout_and_noted_as_new(ilsvrc):
    expected = contents(new_subset(ilsvrc["folders"], 3))
    for layout in LAYOUTS:
        source = new_subset(ilsvrc[layout], 3)
        assert contents(source) == expected and source.classes == list(SYNSETS)
        assert "NOT the published ImageNet-LT" in source.notes[0]
        assert "18 to 2 a class, seed 3" in source.notes[0]


@pytest.mark.parametrize("folder", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_labels_are_found_from_any_of_its_folders(ilsvrc, folder):
    found = contents(new_subset(ilsvrc["Kaggle"] / folder))
    assert found == contents(new_subset(ilsvrc["folders"]))


def test_a_new_subset_has_pareto_counts_20_for_validation_and_ilsvrcs_validation_images_as_test(
    ilsvrc,
):
    source = new_subset(ilsvrc["folders"])
    train, val = source.splits["train"], source.splits["val"]
    counts = pareto_counts(18, 2, 4)
    assert counts[0::3] == [18, 2]
    assert sorted(np.bincount(train.labels), reverse=True) == counts
    np.testing.assert_array_equal(np.bincount(val.labels), [20] * 4)
    assert not set(train.keys) & set(val.keys)
    found = contents(source)
    for split in ("train", "val"):
        for key, label, content in found[split]:
            synset, name = key.split("/")
            assert (synset, content) == (list(SYNSETS)[label], TRAIN[synset][f"{name}.JPEG"])
    assert found["test"] == [
        (f"val/{name[:-5]}", list(SYNSETS).index(val_class(name)), content)
        for name, content in VAL.items()
    ]


def test_a_new_subset_follows_from_the_seed(ilsvrc):
    first, again, other = (contents(new_subset(ilsvrc["folders"], seed)) for seed in (5, 5, 6))
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
    assert new_subset(root).classes == list(SYNSETS)


def test_validation_images_without_a_class_are_refused(tmp_path):
    root = make_ilsvrc(tmp_path, "folders and flat val")
    solution = root / "LOC_val_solution.csv"
    whole = solution.read_text()
    solution.write_text("\n".join(whole.split("\n")[:-3]))
    message = r"2 images of .*val' have no class: .*LOC_val_solution.csv \(Kaggle\)"
    with pytest.raises(UserError, match=message):
        new_subset(root)
    solution.write_bytes(whole.encode() + b"\xff\xfe,x\n")
    with pytest.raises(UserError, match="cannot read .*LOC_val_solution.csv"):
        new_subset(root)
    solution.unlink()
    with pytest.raises(UserError, match="12 images of .*have no class"):
        new_subset(root)


def test_a_source_without_training_images_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    touch(tmp_path, "val/n01440764/1.JPEG")
    with pytest.raises(UserError, match="there are no classes with images in .*train"):
        new_subset(tmp_path)
