"""The cosine classifier against its definition."""

import torch
from torch.nn import functional as F

from lt_train.models.heads import CosineClassifier


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
