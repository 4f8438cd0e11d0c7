"""The methods against their papers' formulas: heads, mixing, rotation, semi-supervised training,
experts.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import (
    ClassifierConfig,
    Config,
    DataConfig,
    ExpertsConfig,
    FixmatchConfig,
    KnnConfig,
    LossConfig,
    ModelConfig,
    RotationConfig,
    SemiConfig,
    UnlabeledConfig,
    ViewConfig,
)
from lt_train.data.order import batch_slice
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.methods import METHODS, fixmatch, rotation
from lt_train.methods.base import Method
from lt_train.methods.mixup import mixed
from lt_train.methods.rotation import four_rotations
from lt_train.models.heads import CosineClassifier
from tests.helpers.ranks import one_thread  # noqa: F401
from tests.helpers.small_methods import COUNTS, FEATURES, make_images, make_labels, make_method

# the cosine classifier


def test_cosine_logits_are_bounded_by_the_scale_and_blind_to_lengths():
    head = CosineClassifier(6, 4, 16.0)
    features = torch.randn(20, 6)
    logits = head(features)
    expected = 16 * F.cosine_similarity(features[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(logits, expected)
    assert logits.abs().max() <= 16 * (1 + 1e-6)
    torch.testing.assert_close(head(1000 * features), logits)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[0.1], [1], [10], [100]]))
    torch.testing.assert_close(head(features), logits)
    torch.testing.assert_close(head(head.weight.detach()).diagonal(), torch.full((4,), 16.0))


def test_cosine_logits_are_float32_under_autocast():
    head, features = CosineClassifier(64, 4, 30.0), torch.randn(20, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
    assert logits.dtype == torch.float32 and logits.equal(head(features.float()))


# mixup and CutMix


@pytest.mark.parametrize("step", range(5))
def test_mixup_is_the_convex_combination_with_the_mirrored_sample(step):
    images = make_images(5)
    result, share = mixed(images, ClassifierConfig(mixup_alpha=0.7), 3, step)
    assert 0 < share < 1
    torch.testing.assert_close(result, share * images + (1 - share) * images[[4, 3, 2, 1, 0]])


def test_cutmix_pastes_one_box_whose_area_is_the_partners_share():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 10, 14).contiguous()
    shares = []
    for step in range(200):
        result, share = mixed(images, ClassifierConfig(cutmix_alpha=1.0), 3, step)
        pasted = result != images
        assert (pasted == pasted[:1, :1]).all(), "the same box in every image"
        assert (result == images.where(~pasted, images.flip(0))).all()
        assert pasted[0, 0].float().mean().item() == pytest.approx(1 - share, abs=1e-6)
        rows, columns = pasted[0, 0].any(1), pasted[0, 0].any(0)
        assert pasted[0, 0].equal(rows[:, None] & columns), "a box"
        assert rows.int().diff().ne(0).sum() <= 2 and columns.int().diff().ne(0).sum() <= 2
        shares.append(share)
    assert len(set(shares)) > 30 and min(shares) < 0.2 and max(shares) > 0.9
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3], "the batch itself is left alone"


@pytest.mark.parametrize(
    "config",
    [ClassifierConfig(mixup_alpha=1.0), ClassifierConfig(cutmix_alpha=1.0)],
    ids=["mixup", "CutMix"],
)
def test_every_rank_mixes_alike_and_every_step_and_seed_anew(config):
    """Each with its own images, and one more or less of them."""
    images = make_images(7)
    first, last = mixed(images[:3], config, 5, 8), mixed(images[3:], config, 5, 8)
    assert first[1] == last[1] and first[0][1].equal(images[1]) and last[0].shape == (4, 3, 8, 8)
    if config.cutmix_alpha:
        assert (first[0][0] == images[2]).equal(last[0][0] == images[6]), "the same box"
    assert (
        len({mixed(images, config, seed, step)[1] for seed, step in ((5, 8), (5, 9), (6, 8))}) == 3
    )


def test_shares_are_of_the_beta_distribution_and_methods_alternate():
    """Beta(0.5, 0.5) has mean 1/2 and variance 1/8; with both methods on, each has its turns."""
    config = ClassifierConfig(mixup_alpha=0.5)
    shares = np.array([mixed(torch.zeros(2, 3, 1, 1), config, 0, step)[1] for step in range(2000)])
    assert shares.mean() == pytest.approx(
        0.5, abs=4 * math.sqrt(1 / 8 / 2000)
    ) and shares.var() == pytest.approx(1 / 8, abs=0.01)
    images = torch.stack([torch.zeros(3, 9, 9), torch.ones(3, 9, 9)])
    patched = [
        bool(
            (
                (result := mixed(images, replace(config, cutmix_alpha=1.0), 0, step)[0])
                * (1 - result)
            )
            .eq(0)
            .all()
        )
        for step in range(200)
    ]
    assert 70 < sum(patched) < 130


def test_nothing_is_mixed_unless_asked_for():
    images = make_images(3)
    result, share = mixed(images, ClassifierConfig(), 0, 0)
    assert result is images and share == 1


def test_ldams_margins_are_in_units_of_the_cosine():
    config = Config(
        loss=LossConfig("ldam", max_margin=0.4), classifier=ClassifierConfig("cosine", scale=20.0)
    )
    method = make_method(config)
    method.classifier = CosineClassifier(FEATURES, 3, 20.0)
    images, labels = make_images(6), make_labels(6)
    cosines = F.cosine_similarity(
        method.backbone(images)[:, None], method.classifier.weight[None], dim=2
    )
    margins = 0.4 * (COUNTS / 5) ** -0.25
    expected = F.cross_entropy(20 * (cosines - F.one_hot(labels, 3) * margins), labels)
    torch.testing.assert_close(method({"views": [images], "label": labels}, 0)["loss"], expected)


@pytest.mark.parametrize("weights", ["none", "inverse"])
def test_the_loss_of_mixed_images_is_that_of_both_labels_by_their_shares(weights):
    classifier = ClassifierConfig(mixup_alpha=1.0)
    method = make_method(Config(classifier=classifier, loss=LossConfig(class_weights=weights)))
    batch = {"views": [make_images(6)], "label": torch.tensor([0, 2, 1, 1, 0, 0])}
    images, share = mixed(batch["views"][0], classifier, 0, 4)
    by_class = torch.ones(3) if weights == "none" else 1 / COUNTS
    losses = [
        F.cross_entropy(method.predict(images), labels, by_class)
        for labels in (batch["label"], batch["label"].flip(0))
    ]
    torch.testing.assert_close(
        method(batch, 4)["loss"], share * losses[0] + (1 - share) * losses[1]
    )


# rotation


def rotation_method(all_four: bool = False, global_batch_size: int = 256) -> Method:
    method = make_method(
        Config(
            method="rotation",
            rotation=RotationConfig(all_four),
            global_batch_size=global_batch_size,
            knn=KnnConfig(3, 0.01),
        )
    )
    method.rotation_head = nn.Linear(12, 4)
    return method


def test_rotations_are_numpys_quarter_turns():
    images = make_images(3)
    for turns, rotated in enumerate(four_rotations(images)):
        np.testing.assert_array_equal(rotated.numpy(), np.rot90(images.numpy(), turns, (2, 3)))


def test_each_image_is_rotated_by_its_label():
    method, images = rotation_method(global_batch_size=64), make_images(64)
    turns = method._turns(7)
    rotated = torch.stack(
        [torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(images, turns)]
    )
    expected = F.cross_entropy(method.rotation_head(method.backbone(rotated)), turns)
    torch.testing.assert_close(
        method({"views": [images], "label": torch.full((64,), -1)}, 7)["loss"], expected
    )


def test_all_four_rotations_of_every_image():
    method, images = rotation_method(all_four=True), make_images(5)
    losses = [
        F.cross_entropy(
            method.rotation_head(method.backbone(torch.rot90(images, turn, (2, 3)))),
            torch.full((5,), turn),
        )
        for turn in range(4)
    ]
    torch.testing.assert_close(
        method({"views": [images], "label": torch.zeros(5, dtype=torch.int64)}, 0)["loss"],
        torch.stack(losses).mean(),
    )


def test_turns_are_uniform_and_follow_from_the_place_in_the_global_batch(monkeypatch):
    method = rotation_method()
    turns = torch.stack([method._turns(step) for step in range(100)])
    counts = turns.flatten().bincount(minlength=4)
    assert (
        len(counts) == 4 and ((counts - 6400) ** 2 / 6400).sum() < 20
    )  # chi-square of 3 degrees: 1 in 5,000
    assert len(turns.unique(dim=0)) == 100
    parts = []
    for rank in range(3):
        monkeypatch.setattr(rotation, "rank_and_size", lambda rank=rank: (rank, 3))
        parts.append(method._turns(8))
        assert len(parts[-1]) == len(batch_slice(8, 256, rank, 3))
    assert torch.cat(parts).equal(turns[8])


def test_a_constant_head_tells_a_quarter_of_the_rotations_and_features_are_judged_by_neighbours():
    """k-NN: each test image is a training image, so its nearest neighbour's vote is right."""
    method = rotation_method().eval()
    nn.init.zeros_(method.rotation_head.weight)
    images, labels = make_images(9), make_labels(9)
    rows = {"train": [slice(0, 9)], "val": [slice(0, 4), slice(4, 8), slice(8, 9)]}
    loaders = {
        split: [{"views": [images[part]], "label": labels[part]} for part in parts]
        for split, parts in rows.items()
    }
    with torch.no_grad():
        metrics = method.evaluate(loaders.__getitem__, "val")
    assert metrics["rotation_top1"] == 25 and metrics["knn_top1"] == 100 and metrics["samples"] == 9
    assert "knn_ece" not in metrics


# experts


def test_experts_learn_with_their_own_adjustment_and_predict_their_mean():
    method = make_method(Config(method="experts", experts=ExpertsConfig((0.0, 1.5))))
    method.classifier = type(method.classifier)(nn.Linear(12, 3) for _ in range(2))
    batch = {"views": [make_images(6)], "label": make_labels(6)}
    logits = [expert(method.backbone(batch["views"][0])) for expert in method.classifier]
    log_prior = (COUNTS / COUNTS.sum()).log()
    expected = F.cross_entropy(logits[0], batch["label"]) + F.cross_entropy(
        logits[1] + 1.5 * log_prior, batch["label"]
    )
    outputs = method(batch, 0)
    torch.testing.assert_close(outputs["loss"], expected)
    mean = (logits[0] + logits[1]) / 2
    torch.testing.assert_close(method.predict(batch["views"][0]), mean)
    assert float(outputs["train_top1"]) == pytest.approx(
        100 * (mean.argmax(1) == batch["label"]).float().mean().item()
    )


def test_there_is_an_expert_for_each_tau():
    method = METHODS["experts"](
        Config(
            method="experts",
            model=ModelConfig("resnet32_cifar"),
            experts=ExpertsConfig((0.0, 1.0, 2.0, 3.0)),
        ),
        COUNTS,
    )
    assert len(method.classifier) == 4 and method.predict(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    assert not method.classifier[0][0].weight.equal(method.classifier[1][0].weight)


# semi-supervised


def semi_config(omega: float, share: float | None = None, **changes) -> Config:
    return Config(
        method="semi",
        semi=SemiConfig(omega),
        unlabeled=UnlabeledConfig("pool", share=share, label_column="pseudo_label"),
        **changes,
    )


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0, 3.0])
def test_a_pseudo_labeled_sample_counts_omega_times(omega):
    method = make_method(semi_config(omega), torch.tensor([5, 5, 90]))
    batch = {
        "views": [make_images(6)],
        "label": make_labels(6),
        "sample_id": torch.tensor([0, 89, 90, 91, 189, 3]),
    }
    losses = F.cross_entropy(method.predict(batch["views"][0]), batch["label"], reduction="none")
    weights = torch.tensor([1, 1, omega, omega, omega, 1])
    torch.testing.assert_close(method(batch, 0)["loss"], (losses * weights).sum() / weights.sum())


def test_class_counts_of_semi_supervised_losses_hold_both_sets():
    pseudo = torch.tensor([5, 5, 90])
    method = make_method(semi_config(1.0, loss=LossConfig("balanced_softmax")), pseudo)
    torch.testing.assert_close(method.criterion.log_prior.exp(), (COUNTS + pseudo) / 190)
    assert method.class_counts.equal(COUNTS), "many, medium and few are by labeled samples"


def test_an_epoch_is_a_pass_over_both_sets_sampled_as_one_or_over_the_labeled_one():
    pseudo = torch.tensor([5, 5, 90])
    assert make_method(semi_config(1.0, None, global_batch_size=19), pseudo).epoch(
        30
    ) == pytest.approx(3)
    assert make_method(semi_config(1.0, 0.5, global_batch_size=20), pseudo).epoch(
        27
    ) == pytest.approx(3)


# FixMatch


def fixmatch_method(
    threshold: float = 0.6, weight: float = 0.5, share: float = 0.6, **changes
) -> Method:
    config = Config(
        method="fixmatch",
        fixmatch=FixmatchConfig(threshold, weight),
        unlabeled=UnlabeledConfig("pool", share=share),
        **changes,
    )
    return make_method(config)


def fixmatch_batch() -> dict:
    """Two labeled and three unlabeled samples."""
    contrast = torch.tensor([3, 3, 20, 0.1, 20])[
        :, None, None, None
    ]  # without any, no class is likely
    return {
        "views": [contrast * make_images(5, seed=1), 3 * make_images(5, seed=2)],
        "label": torch.tensor([2, 0, -1, -1, -1]),
    }


def test_fixmatch_teaches_strong_views_what_weak_ones_are_sure_of():
    """Sohn et al. 2020, equations 3 and 4."""
    method, batch = (
        fixmatch_method(global_batch_size=5, loss=LossConfig("balanced_softmax")),
        fixmatch_batch(),
    )
    weak, strong = (method.predict(view).double() for view in batch["views"])
    supervised = F.cross_entropy(weak[:2] + (COUNTS / COUNTS.sum()).log(), batch["label"][:2])
    sure, losses = [], []
    for of_weak, of_strong in zip(weak[2:], strong[2:]):
        probabilities = of_weak.softmax(0)
        sure.append(probabilities.max().item() >= 0.6)
        losses.append(-of_strong.log_softmax(0)[probabilities.argmax()] * sure[-1])
    assert 0 < sum(sure) < 3
    outputs = method(batch, 0)
    assert float(outputs["loss"].detach()) == pytest.approx(
        float((supervised + 0.5 * sum(losses) / 3).detach()), rel=1e-5
    )
    assert float(outputs["sure"]) == pytest.approx(100 * sum(sure) / 3)


def test_fixmatch_has_no_gradient_through_the_weak_views_target():
    method, batch = fixmatch_method(threshold=0.0, global_batch_size=5), fixmatch_batch()
    weak, strong = (view.requires_grad_() for view in batch["views"])
    method(batch, 0)["loss"].backward()
    moved = [(view.grad.flatten(1).abs().sum(1) > 0).tolist() for view in (weak, strong)]
    assert moved == [[True, True, False, False, False], [False, False, True, True, True]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_fixmatch_finds_labeled_samples_where_the_loaders_put_them(small, monkeypatch, size):
    """On every rank; the ranks' losses, by their samples, make that of one process."""
    view = ViewConfig(size=32, crop="center", resize=32)
    data = DataConfig(root=str(small.root), loader="resident")
    method = fixmatch_method(
        threshold=0.0, global_batch_size=11, data=data, view=view, eval_view=view
    )
    method.config = replace(method.config, unlabeled=UnlabeledConfig(str(small.root), share=0.6))
    method.classifier, supervised, consistency = nn.Linear(FEATURES, 4), [], []
    total = 0.0
    for rank in range(size):
        monkeypatch.setattr(fixmatch, "rank_and_size", lambda rank=rank: (rank, size))
        (batch,) = RunData(method.config, World(rank, size)).train(2, 0, 1)
        weak, strong = (method.predict(images) for images in batch["views"])
        known = batch["label"] >= 0
        supervised.append(F.cross_entropy(weak[known], batch["label"][known], reduction="none"))
        consistency.append(
            F.cross_entropy(strong[~known], weak[~known].argmax(1), reduction="none")
        )
        total += method(batch, 0)["loss"] * len(known) / 11
    assert sum(map(len, supervised)) == 4 and sum(map(len, consistency)) == 7
    torch.testing.assert_close(
        total, torch.cat(supervised).mean() + 0.5 * torch.cat(consistency).mean()
    )
