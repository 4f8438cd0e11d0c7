"""The best weights of a run: kept, given back, and refused where they are damaged."""

import errno

import pytest
import torch
from torch import nn

from lt_train.errors import UserError
from lt_train.training import best_weights
from lt_train.training.best_weights import BestWeights
from tests.helpers.networks import assert_same_state, randomize


def network(seed: int) -> nn.Module:
    return randomize(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), seed)


@pytest.fixture
def best(tmp_path) -> BestWeights:
    best = BestWeights(tmp_path, "val")
    best.offer(5, 60.5, network(5))
    return best


def restored(best: BestWeights) -> tuple[int, dict[str, torch.Tensor]]:
    other = network(0)
    return best.restore(other), other.state_dict()


def test_the_best_of_those_offered_is_given_back(best):
    best.offer(10, 70.25, network(10))
    best.offer(15, 70.25, network(15))
    best.offer(20, 65.0, network(20))
    step, state = restored(best)
    assert step == 10
    assert_same_state(state, network(10).state_dict())


def test_the_best_by_another_split_does_not_count(best):
    other = BestWeights(best.path.parent, "test")
    other.offer(10, 1.0, network(10))
    assert restored(other)[0] == 10


def test_equal_weights_make_equal_files(best):
    content = best.path.read_bytes()
    best.forget()
    assert not best.exists()
    best.offer(5, 60.5, network(5))
    assert best.path.read_bytes() == content


@pytest.mark.parametrize("change", ["weight", "metric", "step", "name", "no checksum", "cut off"])
def test_what_is_damaged_is_refused_with_what_to_do(change, best):
    content = torch.load(best.path, weights_only=True)
    if change == "weight":
        content["method"]["0.bias"][2] += 1
    elif change == "name":
        content["method"]["0.bits"] = content["method"].pop("0.bias")
    elif change == "no checksum":
        content["sha257"] = content.pop("sha256")
    elif change in content:
        content[change] += 1
    torch.save(content, best.path)
    if change == "cut off":
        best.path.write_bytes(best.path.read_bytes()[:-100])
    restarted = BestWeights(best.path.parent, best.select)  # which knows of it by the file alone
    for use in (lambda: restored(best), lambda: restarted.offer(10, 99.0, network(10))):
        with pytest.raises(UserError, match="it is damaged.*or train anew in another run.dir"):
            use()


def test_the_best_of_an_earlier_version_has_no_checksum(best):
    content = torch.load(best.path, weights_only=True)
    del content["sha256"]
    torch.save(content, best.path)
    assert restored(best)[0] == 5


def test_a_full_disk_is_one_line_and_keeps_the_best_before(best, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(best_weights.torch, "save", full)
    with pytest.raises(UserError, match="cannot write .*best.pt: No space left"):
        best.offer(10, 99.0, network(10))
    assert restored(best)[0] == 5
    assert [path.name for path in best.path.parent.iterdir()] == ["best.pt"]
