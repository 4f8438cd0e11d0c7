"""What a run keeps of each image, and of where it comes from."""

import shlex

import numpy as np

from lt_train.data.manifest import Manifest
from lt_train.run_files import read_predictions, read_result


def test_a_run_keeps_what_each_held_out_image_was_taken_for(trained, tinted):
    result = read_result(trained)
    found = read_predictions(trained, result)
    assert found.keys() == {"val", "test"}
    for split, rows in found.items():
        manifest, metrics = Manifest(tinted, split), result["metrics"][split]
        assert rows["sample_id"].tolist() == list(range(len(manifest)))
        assert (rows["label"] == manifest.labels).all()
        confusion = np.zeros_like(metrics["confusion"])
        np.add.at(confusion, (rows["label"], rows["predicted"]), 1)
        assert confusion.tolist() == metrics["confusion"]
        assert metrics["class_samples"] == manifest.class_counts.tolist()


def test_a_run_says_by_which_command_and_commit_it_was_made(trained):
    result = read_result(trained)
    assert shlex.split(result["command"])[:4] == [
        "python",
        "-m",
        "lt_train",
        "classifier_cifar10_lt",
    ]
    assert f"run.dir={trained}" in shlex.split(result["command"])
    assert result["commit"]
