"""Split batch norm against a batch norm per group."""

import pytest
import torch
from torch import nn

from lt_train.models.split_batch_norm import split_batch_norms

STEPS = 3


def split_norm(splits: int, **options) -> nn.Module:
    network = nn.Sequential(nn.BatchNorm2d(5, **options))
    split_batch_norms(network, splits)
    return network[0]


def draw(batch_size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(batch_size, 5, 4, 4, generator=generator) + seed


def sizes_of(batch_size: int, splits: int) -> list[int]:
    """Of the groups; the first ones are larger by one."""
    return [batch_size // splits + (group < batch_size % splits) for group in range(splits)]


@pytest.mark.parametrize(("batch_size", "splits"), [(8, 2), (8, 4), (11, 4), (3, 3)])
def test_split_batch_norm_equals_a_batch_norm_per_group(batch_size, splits):
    features, weights = draw(batch_size).requires_grad_(), draw(batch_size, 1)
    split, plain = split_norm(splits), nn.BatchNorm2d(5)
    groups = features.split(sizes_of(batch_size, splits))
    expected, actual = torch.cat([plain(group) for group in groups]), split(features)
    assert actual.equal(expected)
    gradients = [
        torch.autograd.grad((output * weights).sum(), features)[0] for output in (actual, expected)
    ]
    assert gradients[0].equal(gradients[1])


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize(("batch_size", "splits"), [(8, 4), (11, 4)])
def test_running_statistics_move_once_a_step_to_the_mean_of_the_groups(
    batch_size, splits, momentum
):
    """As those of several ranks do: each moves by its own group, and their mean is kept."""
    split, plain = split_norm(splits, momentum=momentum), nn.BatchNorm2d(5, momentum=momentum)
    for step in range(STEPS):
        features, moved = draw(batch_size, step), []
        split(features)
        for group in features.split(sizes_of(batch_size, splits)):
            rank = nn.BatchNorm2d(5, momentum=momentum)
            rank.load_state_dict(plain.state_dict())
            rank(group)
            moved.append(rank)
        for name in ("running_mean", "running_var"):
            mean = torch.stack([getattr(rank, name) for rank in moved]).mean(0)
            getattr(plain, name).copy_(mean)
        plain.num_batches_tracked.add_(1)
    for name, statistic in plain.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], statistic, msg=name)
    features = draw(4)
    torch.testing.assert_close(split.eval()(features), plain.eval()(features))


def test_without_running_statistics_groups_are_normalised_all_the_same():
    split, features = split_norm(2, track_running_stats=False), draw(6)
    expected = torch.cat([nn.BatchNorm2d(5)(group) for group in features.split(3)])
    assert split(features).equal(expected)
