"""The process that judges images: what it says, and that no image ends a run by ending it."""

import multiprocessing
import os
import signal

import pytest

from lt_train.data.image_files.decoder_process import DecoderProcess
from lt_train.data.image_files.verdict import Outcome, Suspect
from lt_train.errors import UserError
from tests.helpers.dying_decoder import DEADLY, DEADLY_ONCE
from tests.helpers.odd_images import SIDE, whole_files


def suspects(*names: str) -> list[Suspect]:
    files = whole_files(0)
    return [Suspect(files[name], (SIDE, SIDE)) for name in names]


def with_comment(suspect: Suspect, comment: bytes) -> Suspect:
    """A JPEG that ends in ``comment``."""
    return Suspect(suspect.content + comment, suspect.size)


@pytest.fixture(scope="module")
def process() -> DecoderProcess:
    return DecoderProcess()


def outcomes(process: DecoderProcess, images: list[Suspect]) -> list[str]:
    return [verdict.outcome.name for verdict in process.judge(images)]


def test_each_image_of_a_batch_has_its_own_verdict(process):
    names = ["jpeg plain", "png end missing", "webp", "tiff 1", "pnm P6 to 100", "jpeg CMYK"]
    found = outcomes(process, suspects(*names))
    assert found == ["SAME", "DAMAGED", "SAME", "DIFFERENT", "DIFFERENT", "SAME"]


def test_a_plain_image_of_another_size_than_was_said_is_looked_at_by_both(process):
    (image,) = suspects("jpeg plain")
    assert outcomes(process, [Suspect(image.content, (SIDE + 1, SIDE))]) == ["SAME"]


def test_an_image_that_kills_dali_is_named_and_the_others_are_judged():
    dying = DecoderProcess("tests.helpers.dying_decoder")
    good, other = suspects("jpeg plain", "webp")
    found = dying.judge([good, with_comment(good, DEADLY), other])
    assert [verdict.outcome.name for verdict in found] == ["SAME", "DIFFERENT", "SAME"]
    assert found[1].reason == "it kills DALI (signal 11)"


@pytest.mark.slow
def test_an_image_that_kills_dali_and_is_none_to_pillow_is_damaged():
    dying = DecoderProcess("tests.helpers.dying_decoder")
    (damaged,) = dying.judge([with_comment(Suspect(b"", (1, 1)), DEADLY)])
    assert damaged.outcome is Outcome.DAMAGED


def test_an_image_is_not_to_blame_for_an_end_that_does_not_come_again(tmp_path):
    dying = DecoderProcess("tests.helpers.dying_decoder")
    (good,) = suspects("jpeg plain")
    image = with_comment(good, DEADLY_ONCE + os.fsencode(tmp_path / "dead"))
    assert outcomes(dying, [image]) == ["SAME"]
    assert (tmp_path / "dead").exists()


def test_a_process_that_is_killed_is_one_line(process):
    assert outcomes(process, suspects("webp")) == ["SAME"]
    os.kill(process._child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="out of memory"):
        process.judge(suspects("webp"))
    assert outcomes(process, suspects("webp")) == ["SAME"]


def test_a_broken_dali_is_one_line():
    without = DecoderProcess("tests.helpers.no_decoder")
    for _ in range(2):
        with pytest.raises(UserError, match="DALI, .* cannot be imported: .* --no-decode-check"):
            without.judge(suspects("webp"))


def test_a_forked_process_has_one_of_its_own(process):
    images = suspects("webp", "tiff 1")
    expected = outcomes(process, images)
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()

    def ask() -> None:
        answers.put([outcomes(process, images) for _ in range(20)])

    others = [fork.Process(target=ask) for _ in range(2)]
    for other in others:
        other.start()
    assert [outcomes(process, images) for _ in range(20)] == [expected] * 20
    assert [answers.get() for _ in others] == [[expected] * 20] * 2
