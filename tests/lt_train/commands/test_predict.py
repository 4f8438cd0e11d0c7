"""The command predict: raw images are seen as evaluation sees the prepared set made of them."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lt_train.commands.open_run import open_run
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from tests.helpers.commands import (
    CLASSES,
    HELD_OUT,
    evaluated,
    images,
    read,
    refused,
    run,
    torchrun,
    words,
)
from tests.helpers.pictures import EXIF_ORIENTATION, ROTATED_BY_90, encode, smooth_image
from tests.helpers.sources import fill, tar_of

DALI = ("data.loader=dali", "view.crop=random_resized")
NAMES = [f"class_{label}" for label in range(CLASSES)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """The test images of ``tinted`` as files, under the keys that they have there."""
    labels = np.repeat(np.arange(CLASSES), HELD_OUT)
    contents = {f"{key:05d}.png": image for key, image in enumerate(images(labels, 2))}
    return fill(tmp_path_factory.mktemp("raw"), contents)


@pytest.fixture(scope="module")
def odd_files() -> dict[str, bytes]:
    """Images of all kinds that data_prep takes, larger than any view, by name; none is square."""
    image = smooth_image(np.random.default_rng(0), 61, 50)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATED_BY_90
    see_through = image.copy()
    see_through.putalpha(100)
    return {
        "0.jpg": encode(image, "JPEG", quality=90),
        "1.jpg": encode(image, "JPEG", quality=90, exif=exif, progressive=True),
        "2.jpg": encode(image.convert("CMYK"), "JPEG"),
        "3.jpg": encode(image.convert("L"), "JPEG") + b"garbage behind",
        "4.png": encode(image.convert("P"), "PNG"),
        "5.png": encode(see_through, "PNG"),
        "6.webp": encode(see_through, "WEBP"),
        "7.tif": encode(image, "TIFF", compression="tiff_lzw"),
        "8.bmp": encode(image, "BMP"),
        "9.ppm": encode(image, "PPM"),
        "10.tif": encode(image.convert("1"), "TIFF"),  # which DALI does not decode
    }


def rows(file: Path) -> dict[str, dict[str, str]]:
    """Rows of a CSV by the name of the image, without suffix."""
    with open(file, newline="") as stream:
        return {Path(row["path"]).stem: row for row in csv.DictReader(stream)}


def predicted(file: Path, *arguments: str | Path) -> dict[str, dict[str, str]]:
    run("predict", *arguments, "--out", file)
    return rows(file)


def values(row: dict[str, str]) -> list[str]:
    """All that is said of an image but its name and label."""
    return [value for name, value in row.items() if name not in ("path", "label")]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("eval_view.size=24", "eval_view.resize=40", "--crops", "5"),
        pytest.param(
            (*DALI, "eval_view.size=24", "eval_view.resize=40", "--crops", "5"),
            marks=pytest.mark.slow,
        ),
        (*DALI, "loss.name=logit_adjustment", "--step", "10"),
    ],
    ids=["resident", "resident, 5 crops", "dali, 5 crops", "dali, a checkpoint"],
)
def test_raw_images_are_predicted_as_the_set_made_of_them_is_evaluated(
    options, trained, tinted, raw, tmp_path, capsys
):
    prepared = predicted(tmp_path / "set.csv", trained, tinted, *options)
    said = capsys.readouterr().err
    found = predicted(tmp_path / "raw.csv", trained, raw, *options)
    assert list(found) == [f"{key:05d}" for key in range(CLASSES * HELD_OUT)]
    assert {key: values(row) for key, row in prepared.items()} == {
        key: values(row) for key, row in found.items()
    }
    right = np.mean([row["label"] == row["class_1"] for row in prepared.values()])
    top1 = evaluated(trained, *options, "--out", trained / "evaluation.json")["test"]["top1"]
    assert 100 * right == pytest.approx(top1, abs=1e-3) and f"top-1 {top1:.2f} %" in said
    for row in found.values():
        assert sum(float(row[f"probability_{place}"]) for place in (1, 2, 3, 4)) == pytest.approx(
            1, 1e-5
        )
        assert {row[f"class_{place}"] for place in (1, 2, 3, 4)} == set(NAMES)


@pytest.mark.slow
def test_images_of_all_kinds_are_seen_alike_and_unusable_ones_are_named(
    trained, prepare, odd_files, tmp_path, capsys
):
    root = prepare({"all": (list(odd_files.values()), [0] * len(odd_files))}, classes=CLASSES)
    bad = {
        "cut.jpg": odd_files["0.jpg"][:-300],
        "deep.png": encode(Image.fromarray(np.zeros((9, 9), np.uint16)), "PNG"),
        "empty.png": b"",
        "other.jpg": encode(Image.new("RGB", (9, 9)), "GIF"),
    }
    source = fill(tmp_path / "source", odd_files | bad)
    (source / "list.txt").write_text("\n".join([*odd_files, *bad, "missing.jpg", "0.jpg"]))
    prepared = predicted(tmp_path / "set.csv", trained, root)
    of_folder = predicted(tmp_path / "folder.csv", trained, source)
    assert "4 cannot be used" in capsys.readouterr().err
    assert {key.lstrip("0") or "0": values(row) for key, row in prepared.items()} == {
        key: values(row) for key, row in of_folder.items() if key.isdecimal()
    }
    of_list = predicted(tmp_path / "list.csv", trained, source / "list.txt", "--top", "1")
    with open(tmp_path / "list.csv") as file:
        assert file.read().count("\n0.jpg,") == 2, "a line each, in the list's order"
    for name in ("cut", "deep", "empty", "other", "missing"):
        assert of_list[name]["error"] and not of_list[name]["class_1"]
    assert "8 bits" in of_list["deep"]["error"] and "No such file" in of_list["missing"]["error"]
    assert list(of_list["9"]) == ["path", "class_1", "probability_1", "error"]
    assert of_list["9"]["class_1"] == of_folder["9"]["class_1"]


def test_csv_goes_to_stdout_alone_and_parquet_holds_the_same(trained, raw, tmp_path, capsysbinary):
    tar, names = tmp_path / 'a, "b".tar', ("00003.png", "00000.png")  # to be quoted
    tar.write_bytes(tar_of({name: (raw / name).read_bytes() for name in names}))
    run("predict", trained, tar)
    said = capsysbinary.readouterr()
    found = list(csv.DictReader(said.out.decode().splitlines()))
    assert [row["path"] for row in found] == [f"{tar}/00003.png", f"{tar}/00000.png"]
    assert b"2 images in" in said.err and b'a, "b".tar' not in said.err
    run("predict", trained, str(tar).replace("a, ", "?, "), "--out", tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    for row, other in zip(found, table, strict=True):
        assert other.pop("error") is None and row.pop("error") == ""
        numbers = {name: value for name, value in other.items() if isinstance(value, float)}
        assert {name: f"{value:.6g}" for name, value in numbers.items()} | {
            name: value for name, value in other.items() if name not in numbers
        } == row


def test_a_finished_run_needs_its_data_set_no_more(trained, raw, tmp_path):
    here = predicted(tmp_path / "here.csv", trained, raw / "00005.png")
    moved = shutil.copytree(trained, tmp_path / "run")
    assert predicted(tmp_path / "b.csv", moved, raw / "00005.png", "data.root=/gone") == here


def logits(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and features of a split, in the order of its keys."""
    config, method = open_run(folder, [], World())
    data = RunData(config, World())
    order = np.argsort([data.manifest(split).key(index) for index in range(CLASSES * HELD_OUT)])
    with torch.no_grad():
        (batches,) = [list(data.evaluate(split))]
        features = torch.cat([method.backbone(batch.views[0]) for batch in batches])
        labels = torch.cat([batch.label for batch in batches])
        return method.classifier(features)[order], labels[order], features[order]


def test_calibrated_probabilities_are_by_the_temperature_that_fits_validation(
    trained, raw, tmp_path, capsys
):
    found = predicted(tmp_path / "a.csv", trained, raw, "--calibrated", "--top", "1")
    said = capsys.readouterr().err
    temperature = float(re.search(r"temperature ([\d.]+) \(fitted on val\)", said)[1])
    scores, labels, _ = logits(trained, "val")
    best = F.cross_entropy(scores / temperature, labels)
    assert all(F.cross_entropy(scores / temperature / by, labels) > best for by in (0.99, 1.01))
    expected = (logits(trained, "test")[0] / temperature).softmax(1).amax(1)
    assert [float(row["probability_1"]) for row in found.values()] == pytest.approx(
        expected.tolist(), rel=1e-4
    )


@pytest.mark.slow
def test_classifiers_made_after_training_take_its_place(trained, raw, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "run")
    line = refused(capsys, "predict", folder, raw, "--classifier", "tau_norm")
    assert "has no posthoc.json" in line and "--classifier tau_norm=1" in line
    run("posthoc", folder)
    entries = {entry["name"]: entry for entry in read(folder, "posthoc.json")["classifiers"]}
    capsys.readouterr()
    names = {
        "tau_norm": "tau-norm",
        "logit_adjustment": "logit adjustment",
        "ncm_cosine": "NCM, cosine",
        "ncm_euclidean": "NCM, Euclidean",
    }
    for name, of_posthoc in names.items():
        found = predicted(tmp_path / f"{name}.csv", folder, raw, "--classifier", name)
        labels = np.repeat(NAMES, HELD_OUT)
        right = np.mean([row["class_1"] == label for row, label in zip(found.values(), labels)])
        metrics = entries[of_posthoc]["metrics"]["test"]
        assert 100 * right == pytest.approx(metrics["top1"], abs=1e-3)
        said, parameter = capsys.readouterr().err, entries[of_posthoc]["parameter"]
        assert of_posthoc + (f" with {parameter}" if parameter else "") in said
        first = "probability_1" if parameter else "score_1"
        assert first in next(iter(found.values()))
    given = predicted(tmp_path / "given.csv", folder, raw, "--classifier", "logit_adjustment=2")
    prior = torch.tensor(read(folder)["class_counts"]).double()
    scores = logits(folder, "test")[0] - 2 * (prior / prior.sum()).log()
    expected = scores.softmax(1).amax(1).tolist()
    assert [float(row["probability_1"]) for row in given.values()] == pytest.approx(expected, 1e-4)
    ncm = ["--classifier", "ncm_cosine", "--calibrated"]
    calibrated = predicted(tmp_path / "ncm.csv", folder, raw, *ncm)
    assert "probability_1" in next(iter(calibrated.values()))


MISTAKES = {
    "no such place": (["nowhere"], "there is no file or folder 'nowhere'"),
    "an empty folder": (["empty"], "'empty' has no images"),
    "unreadable": (["cut"], "none of the 2 images of cut can be used; the first, cut/1.png"),
    "another format": ([".", "--out", "a.json"], "must end in .csv or .parquet"),
    "no such folder": ([".", "--out", "no/a.csv"], "there is no folder no"),
    "a split of images": ([".", "--split", "test"], "--split is for prepared sets"),
    "no such split": (["SET", "--split", "other"], "has no split 'other'"),
    "several splits": (["SET", "data.test_split=none"], "name one with --split"),
    "a URL": (["s3://bucket/set"], "copy s3://bucket/set to a folder first"),
    "no validation": ([".", "--calibrated", "data.val_split=none"], "has no 'none'"),
    "no room for crops": ([".", "--crops", "5"], "which leaves no room"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, trained, tinted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {"empty/notes.md": b"", "cut/1.png": b"x", "cut/2.jpg": b"\xff\xd8"})
    arguments, line = MISTAKES[mistake]
    arguments = [str(tinted) if word == "SET" else word for word in arguments]
    assert line in refused(capsys, "predict", trained, *arguments)
    assert not list(tmp_path.glob("*.*"))


def test_a_run_without_a_classifier_predicts_nothing(tinted, raw, tmp_path, capsys):
    run(*words("moco_cifar10_lt", tinted, tmp_path / "run", "max_steps=1"))
    assert "has no classifier" in refused(capsys, "predict", tmp_path / "run", raw)


@pytest.mark.slow
def test_any_number_of_ranks_writes_the_same(trained, raw, odd_files, tmp_path):
    names = [str(path) for path in sorted(raw.iterdir())]
    fill(tmp_path, odd_files | {"cut.jpg": odd_files["0.jpg"][:-300]})
    (tmp_path / "list.txt").write_text("\n".join(["cut.jpg", *names, *odd_files, "missing.jpg"]))
    options = [tmp_path / "list.txt", "--calibrated"]
    alone = predicted(tmp_path / "1.csv", trained, *options)
    said = torchrun("predict", trained, *options, "--out", tmp_path / "2.csv")
    assert said.count("2 cannot be used") == 1
    together = rows(tmp_path / "2.csv")
    assert list(together) == list(alone)
    for key, row in together.items():
        for name, value in row.items():
            if name.startswith("probability") and value:
                assert float(value) == pytest.approx(float(alone[key][name]), rel=1e-3, abs=1e-6)
            else:
                assert value == alone[key][name]
    torchrun("predict", trained, raw / "00001.png", "--out", tmp_path / "one.csv")
    assert list(rows(tmp_path / "one.csv")) == ["00001"], "with a rank that has nothing to do"
