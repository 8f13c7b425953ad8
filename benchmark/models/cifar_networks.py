"""Networks for images of 32 x 32 pixels, registered with timm as `cifar_...` when this module is imported.

    import benchmark.models.cifar_networks
    network = timm.create_model("cifar_resnet20", num_classes=10)

Parameters are named as in the public code that most checkpoints come from: akamaster/pytorch_resnet_cifar10 and
kuangliu/pytorch-cifar for the ResNets, xternalz/WideResNet-pytorch, andreasveit's DenseNet (which DICE uses).

The names of the classes here are part of the hash of a network's weights (`Model.weights_sha256`). With another name,
stored outputs would be computed again.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn.functional import pad


class CifarNetwork(nn.Module):
    """A 3 x 3 convolution, stages, global average pooling and one linear head, with the methods of a timm network.

    width: the number of channels of the first layer.
    stages: the stages by name, first to last.
    num_features: the number of channels of the last stage.
    head: the name of the linear layer.
    preactivated: whether normalisation and ReLU come after the last stage, and not before the first.
    num_classes: the number of classes; 0 for features without a head.
    in_chans: the number of channels of the images.
    """

    def __init__(
        self,
        width: int,
        stages: Mapping[str, nn.Module],
        num_features: int,
        head: str,
        preactivated: bool,
        num_classes: int,
        in_chans: int,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.in_chans = num_classes, num_features, in_chans
        self.head_hidden_size = num_features
        self._stages, self._head, self._preactivated = tuple(stages), head, preactivated
        self.conv1 = _conv3x3(in_chans, width)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.bn1 = nn.BatchNorm2d(num_features if preactivated else width)
        self.act1 = nn.ReLU()
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        return self.get_submodule(self._head)

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.add_module(self._head, nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity())

    def forward_intermediates(
        self, x: Tensor, intermediates_only: bool = False, output_fmt: str = "NCHW"
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of the stages, first to last; with the last feature map before them, unless it is excluded.

        x: images (N, channels, height, width).
        intermediates_only: whether the last feature map is left out.
        output_fmt: "NCHW", the only format that there is. Raises ValueError for another one.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}; allowed: 'NCHW'")
        hidden, intermediates = self.conv1(x), []
        if not self._preactivated:
            hidden = self.act1(self.bn1(hidden))
        for name in self._stages:
            hidden = self.get_submodule(name)(hidden)
            intermediates.append(hidden)
        if self._preactivated:
            hidden = self.act1(self.bn1(hidden))
        return intermediates if intermediates_only else (hidden, intermediates)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.forward_intermediates(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean(dim=(2, 3))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class BasicBlock(nn.Module):
    """The basic block of He et al., 2016a.

    width: the number of channels that enter.
    channels: the number of channels that leave.
    stride: of the first convolution, in pixels.
    padded: whether a shortcut to more channels pads with zeros ("option A"), or is a convolution.
    """

    def __init__(self, width: int, channels: int, stride: int, padded: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(width, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if width != channels and padded:
            self.shortcut = PaddedShortcut(channels - width, stride)
        elif width != channels:
            self.shortcut = nn.Sequential(_conv1x1(width, channels, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """A shortcut that takes every `stride`-th pixel and adds channels of zeros, half of them before the old channels.

    added: the number of channels that are added.
    stride: in pixels.
    """

    def __init__(self, added: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = added, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.added // 2
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))

    def extra_repr(self) -> str:
        return f"added={self.added}, stride={self.stride}"


class WideBlock(nn.Module):
    """The block of Zagoruyko and Komodakis, 2016: normalisation and ReLU come before each convolution."""

    def __init__(self, width: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv1 = _conv3x3(width, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()
        self.conv2 = _conv3x3(channels, channels)
        self.convShortcut = None if width == channels else _conv1x1(width, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.act1(self.bn1(x))
        hidden = self.conv2(self.act2(self.bn2(self.conv1(active))))
        return hidden + (x if self.convShortcut is None else self.convShortcut(active))


class DenseLayer(nn.Module):
    """The bottleneck layer of Huang et al., 2017. Its outputs are added to its inputs as further channels."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv1 = _conv1x1(width, 4 * growth)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.act2 = nn.ReLU()
        self.conv2 = _conv3x3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.act1(self.bn1(x)))
        return torch.cat([x, self.conv2(self.act2(self.bn2(hidden)))], dim=1)


class Transition(nn.Module):
    """The layer between two dense blocks: it changes the number of channels, and halves height and width."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv1 = _conv1x1(width, channels)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv1(self.act1(self.bn1(x))))


class _Block(nn.Module):
    """Layers in a row, under the name `layer`, as public checkpoints name them."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def resnet(width: int, blocks: tuple[int, ...], padded: bool, num_classes: int = 10, in_chans: int = 3) -> CifarNetwork:
    """The ResNet of He et al.: stages of basic blocks. Each stage has half the size and twice the channels of the last.

    width: the number of channels of the first stage.
    blocks: the number of blocks of each stage.
    padded: see `BasicBlock`.
    """
    block = partial(BasicBlock, padded=padded)
    channels = [width * 2**stage for stage in range(len(blocks))]
    stages: dict[str, nn.Module] = {}
    for number, layers in enumerate(_residual_stages(block, width, channels, blocks), start=1):
        stages[f"layer{number}"] = nn.Sequential(*layers)
    return CifarNetwork(width, stages, channels[-1], "linear", False, num_classes, in_chans)


def wide_resnet(depth: int, widening: int, num_classes: int = 10, in_chans: int = 3) -> CifarNetwork:
    """The Wide ResNet of Zagoruyko and Komodakis, of so many layers, with 16, 32 and 64 times `widening` channels."""
    channels = [16 * widening, 32 * widening, 64 * widening]
    blocks = ((depth - 4) // 6,) * 3
    stages: dict[str, nn.Module] = {}
    for number, layers in enumerate(_residual_stages(WideBlock, 16, channels, blocks), start=1):
        stages[f"block{number}"] = _Block(layers)
    return CifarNetwork(16, stages, channels[-1], "fc", True, num_classes, in_chans)


def densenet_bc(depth: int, growth: int, num_classes: int = 10, in_chans: int = 3) -> CifarNetwork:
    """The DenseNet-BC of Huang et al.: three blocks of bottleneck layers, and transitions that halve the channels.

    depth: the number of layers.
    growth: the number of channels that each bottleneck layer adds.
    """
    layers = (depth - 4) // 6
    width = 2 * growth
    stages: dict[str, nn.Module] = {}
    for number in (1, 2, 3):
        stages[f"block{number}"] = _Block([DenseLayer(width + layer * growth, growth) for layer in range(layers)])
        width += layers * growth
        if number < 3:
            stages[f"trans{number}"] = Transition(width, width // 2)
            width //= 2
    return CifarNetwork(2 * growth, stages, width, "fc", True, num_classes, in_chans)


def _residual_stages(
    block: Callable[[int, int, int], nn.Module], width: int, channels: list[int], blocks: tuple[int, ...]
) -> list[list[nn.Module]]:
    stages = []
    for stage, (out, count) in enumerate(zip(channels, blocks, strict=True)):
        first = block(width, out, 1 if stage == 0 else 2)
        stages.append([first, *(block(out, out, 1) for _ in range(count - 1))])
        width = out
    return stages


def _conv3x3(width: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, channels, kernel_size=3, stride=stride, padding=1, bias=False)


def _conv1x1(width: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, channels, kernel_size=1, stride=stride, bias=False)


NETWORKS: dict[str, partial[CifarNetwork]] = {
    **{
        f"cifar_resnet{depth}": partial(resnet, 16, ((depth - 2) // 6,) * 3, padded=True)
        for depth in (20, 32, 44, 56, 110)
    },
    "cifar_resnet18": partial(resnet, 64, (2, 2, 2, 2), padded=False),
    "cifar_resnet34": partial(resnet, 64, (3, 4, 6, 3), padded=False),
    "cifar_wide_resnet40_2": partial(wide_resnet, 40, 2),
    "cifar_wide_resnet40_4": partial(wide_resnet, 40, 4),
    "cifar_wide_resnet28_10": partial(wide_resnet, 28, 10),
    "cifar_densenet_bc_100_12": partial(densenet_bc, 100, 12),
}

# The name that timm's own modules use; `register_model` looks for it in this module.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 32, 32),
            "pool_size": (8, 8),
            "num_classes": 10,
            "first_conv": "conv1",
            "classifier": "linear" if build.func is resnet else "fc",
        }
        for name, build in NETWORKS.items()
    }
)


def _register(name: str, build: Callable[..., CifarNetwork]) -> None:
    def create(pretrained: bool = False, **options: object) -> CifarNetwork:
        return build_model_with_cfg(build, name, pretrained, **options)

    create.__name__ = name
    register_model(create)


for _name, _build in NETWORKS.items():
    _register(_name, _build)
