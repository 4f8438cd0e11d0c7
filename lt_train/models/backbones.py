"""Backbones: images (B, 3, H, W) -> features (B, out_features). Torchvision's names."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lt_train.config.families import family_of
from lt_train.config.schema import BACKBONES, code_of


def make_backbone(name: str, size: int = 224) -> nn.Module:
    """The backbone ``name`` with random weights.

    Its ``out_features`` attribute is the width of what it returns.

    ``size``: of the images that it will see, in pixels, for networks that are made for one size.
    """
    family = family_of(name)
    if family is None:
        return code_of(BACKBONES, name)()
    module, inner = family
    return module.make(inner, size)


def resnet10() -> nn.Module:
    return _torchvision_resnet(BasicBlock, [1, 1, 1, 1])


def resnet18() -> nn.Module:
    return _torchvision_resnet(BasicBlock, [2, 2, 2, 2])


def resnet50() -> nn.Module:
    return _torchvision_resnet(Bottleneck, [3, 4, 6, 3])


def resnet101() -> nn.Module:
    return _torchvision_resnet(Bottleneck, [3, 4, 23, 3])


def resnet152() -> nn.Module:
    return _torchvision_resnet(Bottleneck, [3, 8, 36, 3])


def resnext50_32x4d() -> nn.Module:
    return _torchvision_resnet(Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=4)


def resnet14_cifar() -> nn.Module:
    return CifarResNet(blocks_per_stage=2)


def resnet32_cifar() -> nn.Module:
    return CifarResNet(blocks_per_stage=5)


def wrn_28_10() -> nn.Module:
    return WideResNet(depth=28, widen=10)


def _torchvision_resnet(block: type, layers: list[int], **options: int) -> nn.Module:
    model = ResNet(block, layers, zero_init_residual=False, **options)
    model.out_features = model.fc.in_features
    model.fc = nn.Identity()
    return model


class CifarResNet(nn.Module):
    """The ResNet of He et al. 2016, section 4.2, for 32x32 images.

    6n + 2 layers, parameter-free shortcuts (option A).
    """

    def __init__(self, blocks_per_stage: int, widths: tuple[int, int, int] = (16, 32, 64)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = (widths[0], *widths[:-1])
        for stage, (width_in, width) in enumerate(zip(inputs, widths), 1):
            blocks = [
                _CifarBlock(
                    width_in if block == 0 else width,
                    width,
                    stride=2 if stage > 1 and block == 0 else 1,
                )
                for block in range(blocks_per_stage)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.out_features = widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return features.mean((2, 3))


class _CifarBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - width_in

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        if self.added:
            shortcut = features[:, :, :: self.stride, :: self.stride]
            features = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(out + features)


class WideResNet(nn.Module):
    """The pre-activation WRN of Zagoruyko and Komodakis 2016 for 32x32 images.

    Depth 6n + 4, without dropout.
    """

    def __init__(self, depth: int, widen: int):
        super().__init__()
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        for stage in range(1, 4):
            blocks = [
                _WideBlock(
                    widths[stage - 1] if block == 0 else widths[stage],
                    widths[stage],
                    stride=2 if stage > 1 and block == 0 else 1,
                )
                for block in range((depth - 4) // 6)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.out_features = widths[3]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return F.relu(self.bn1(features)).mean((2, 3))


class _WideBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(width_in, width, 1, stride, bias=False) if width_in != width else None
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn1(features))
        # where the width changes, the shortcut starts from the activation too, as in the authors'
        # code
        shortcut = features if self.shortcut is None else self.shortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut
