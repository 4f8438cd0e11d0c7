"""Training on features of a frozen backbone that are computed once: the same losses as on images,
and what is found, made again or not used.
"""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lt_train.__main__ import main
from lt_train.config.load import load_config
from lt_train.config.schema import METHODS, MethodTraits
from lt_train.data.batch import Batch
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.errors import EXIT_MACHINE, exit_status
from lt_train.methods.base import Progress
from lt_train.methods.decoupled import Crt
from lt_train.models.tensor_files import write_tensors
from lt_train.models.weights import BACKBONE_FILE
from lt_train.training import frozen_features
from lt_train.training.checkpoint import CheckpointStore
from lt_train.training.trainer import Trainer
from tests.helpers.commands import refused, run, words
from tests.helpers.ranks import run_on_ranks

FIXED = ("view.crop=center", "view.resize=40", "view.flip_probability=0")
ROWS = 16  # samples a file: 45 are three files


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(frozen_features, "ROWS", ROWS)


@pytest.fixture
def asked(monkeypatch) -> list[list[int]]:
    """The samples of which features were computed, a list each time."""
    found, once = [], RunData.train_once

    def told(self, samples: np.ndarray):
        found.append(samples.tolist())
        return once(self, samples)

    monkeypatch.setattr(RunData, "train_once", told)
    return found


def crt(trained: Path, root: Path, folder: Path, *more: str) -> list[str]:
    options = [f"model.init_from={trained}", "classifier.init=class_means", "+cosine"]
    options += ["max_steps=6", "run.checkpoint_every=3"]
    return words("crt_cifar10_lt", root, folder, *options, *FIXED, *more)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in lines if "loss" in record]


def assert_alike(one: Path, other: Path) -> None:
    assert len(losses(one)) == 6
    assert losses(one) == pytest.approx(losses(other), rel=1e-5)
    heads = [load_file(folder / "classifier.safetensors") for folder in (one, other)]
    torch.testing.assert_close(*heads, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def on_images(trained, tinted, tmp_path_factory) -> Path:
    """cRT, image by image."""
    folder = tmp_path_factory.mktemp("on_images") / "run"
    run(*crt(trained, tinted, folder, "data.features=off"))
    return folder


def test_losses_are_those_of_images_and_nothing_is_left(
    trained, tinted, on_images, asked, tmp_path, capsys
):
    run(*crt(trained, tinted, tmp_path / "run"))
    assert "features: computed once, of 45 samples" in capsys.readouterr().err
    assert asked == [list(range(45))], "each image once"
    assert_alike(tmp_path / "run", on_images)
    assert not (tmp_path / "run" / "features").exists()


def test_with_dali_and_damaged_images_losses_are_those_of_images_too(
    trained, tinted, damaged_copy, tmp_path
):
    """Resized as training does it, and with the same stand-ins."""
    root = damaged_copy(tinted, [3, 30])
    options = ["data.loader=dali", "data.decode_threads=1", "data.max_bad_share=0.1"]
    for folder, features in (("images", "off"), ("features", "auto")):
        run(*crt(trained, root, tmp_path / folder, *options, f"data.features={features}"))
    assert_alike(tmp_path / "features", tmp_path / "images")


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def half(trained, tinted, tmp_path_factory) -> Path:
    """A run that was killed after step 3."""
    folder = tmp_path_factory.mktemp("half") / "run"
    save = CheckpointStore.save

    def killed(self, *arguments) -> None:
        save(self, *arguments)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_features, "ROWS", ROWS)
        patch.setattr(CheckpointStore, "save", killed)
        with pytest.raises(Killed):
            run(*crt(trained, tinted, folder))
    assert len(list((folder / "features").iterdir())) == 3
    return folder


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


FOUND = {
    "as they were": (lambda features: None, []),
    "one damaged": (lambda features: damage(features / "000001.safetensors"), [[*range(16, 32)]]),
    "one cut off": (
        lambda features: os.truncate(features / "000000.safetensors", 999),
        [[*range(16)]],
    ),
    "two missing": (
        lambda features: [(features / f"00000{part}.safetensors").unlink() for part in (0, 2)],
        [[*range(16), *range(32, 45)]],
    ),
    "one of another part": (
        lambda features: shutil.copy(*(features / f"00000{part}.safetensors" for part in (1, 0))),
        [[*range(16)]],
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_a_run_that_goes_on_takes_the_files_that_are_whole(
    case, half, trained, tinted, on_images, asked, tmp_path, capsys
):
    change, expected = FOUND[case]
    folder = Path(shutil.copytree(half, tmp_path / "run"))
    change(folder / "features")
    run(*crt(trained, tinted, folder))
    assert asked == expected
    said = capsys.readouterr().err
    assert ("features: found, of 45 samples" in said) == (not expected)
    assert ("it is made again" in said) == (case in ("one damaged", "one cut off"))
    assert_alike(folder, on_images)


def test_features_of_another_view_are_made_anew(half, trained, tinted, asked, tmp_path):
    folder = Path(shutil.copytree(half, tmp_path / "run"))
    other = ["view.resize=36", "resume.allow_changes=[view.resize]"]
    run(*crt(trained, tinted, folder, *other))
    assert asked == [[*range(45)]]


def test_features_of_other_weights_are_made_anew(half, trained, tinted, asked, tmp_path):
    """The run begins anew, from another backbone at the same place."""
    start = Path(shutil.copytree(trained, tmp_path / "start"))
    folder = Path(shutil.copytree(half, tmp_path / "run"))
    weights = load_file(start / BACKBONE_FILE)
    weights["conv1.weight"] *= 1.5
    write_tensors(weights, start / BACKBONE_FILE, {})
    anew = ["resume.enabled=false", "resume.allow_changes=[model.init_from]"]
    run(*crt(start, tinted, folder, *anew))
    assert asked == [[*range(45)]]


IMAGES = {
    "a random view": (["view.flip_probability=0.5"], "the view is random (flip_probability=0.5)"),
    "mixed images": (["+mixup"], "images are mixed"),
    "statistics that follow": (["decoupled.freeze_bn_stats=false"], None),
    "switched off": (["data.features=off"], None),
}


@pytest.mark.parametrize("case", IMAGES)
def test_where_every_step_needs_images_it_gets_them(case, trained, tinted, asked, tmp_path, capsys):
    options, reason = IMAGES[case]
    run(*crt(trained, tinted, tmp_path / "run", *options, "max_steps=1"))
    said = capsys.readouterr().err
    assert not asked
    assert (f"features: computed at every step, since {reason}" in said) == (reason is not None)


class OwnForward(Crt):
    """One that looks at its images by itself."""

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        (images,) = batch.views
        assert images.shape[1:] == (3, 32, 32)
        return super().forward(batch, progress)


def test_a_method_with_a_forward_of_its_own_gets_images(
    trained, tinted, asked, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(METHODS, "own", MethodTraits(OwnForward, from_finished=True))
    run(*crt(trained, tinted, tmp_path / "run", "method=own", "max_steps=1"))
    assert "since the method own needs images" in capsys.readouterr().err and not asked


def test_a_full_disk_is_a_line_and_no_mistake(trained, tinted, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frozen_features, "write_tensors", full)
    options = crt(trained, tinted, tmp_path / "run")
    assert exit_status("lt_train", lambda: main(options)) == EXIT_MACHINE
    said = capsys.readouterr().err
    assert "No space left on device; free space there, or set data.features=off" in said


def test_too_many_damaged_images_stop_the_run_each_time(
    trained, tinted, damaged_copy, asked, tmp_path, capsys
):
    root = damaged_copy(tinted, [3, 30])
    # not by the class means before, which have a line of their own
    options = crt(trained, root, tmp_path / "run", "classifier.init=null")
    for _ in ("features are made", "they are found"):
        line = refused(capsys, *options)
        assert "2 of 45 samples" in line and "data.max_bad_share" in line
    assert len(asked) == 1
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def train_on(world: World, options: list[str]) -> list[list[int]]:
    frozen_features.ROWS = ROWS
    computed, once = [], RunData.train_once

    def told(self, samples: np.ndarray):
        computed.append(samples.tolist())
        return once(self, samples)

    RunData.train_once = told
    Trainer(load_config(options[0], options[1:]), world).run()
    return computed


@pytest.mark.slow
def test_ranks_share_the_images_out_and_start_from_the_same_class_means(
    trained, tinted, on_images, tmp_path
):
    folder = tmp_path / "run"
    computed = run_on_ranks(2, train_on, crt(trained, tinted, folder))
    assert computed == [[[*range(16)]], [[*range(16, 45)]]]
    assert_alike(folder, on_images)
