"""The reliability diagram."""

import numpy as np
import pytest
import torch

from lt_train.methods.metrics import Accuracy
from lt_train.report.calibration import reliability
from tests.helpers.finished_runs import predicted, report, write_run


def test_bins_are_those_of_the_calibration_error():
    """The mean distance of accuracy and confidence over them is what training measured."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3, (400,), generator=generator)
    scores = 2 * torch.randn(400, 3, generator=generator)
    accuracy = Accuracy(torch.tensor([10, 10, 10]), torch.device("cpu"))
    accuracy.update(scores, labels, torch.arange(400))
    metrics = accuracy.compute()
    images, confidence, right = reliability(metrics["predictions"])
    filled = images > 0
    distance = (images * abs(confidence - right))[filled].sum() / images.sum()
    assert images.sum() == 400 and distance == pytest.approx(metrics["ece"], abs=1e-3)
    assert np.isnan(confidence[~filled]).all()


def test_it_is_drawn_where_it_is_known_what_images_were_taken_for(tmp_path):
    write_run(tmp_path / "ce", predictions={"test": predicted()})
    assert "<h2>Calibration</h2>" in report(tmp_path)[1]
    write_run(tmp_path / "more" / "old")
    assert "<h2>Calibration</h2>" not in report(tmp_path / "more")[1]
