"""Networks of torchvision whose weights timm does not have: its own of the same name were trained otherwise."""

from torch import nn
from torchvision import models

from benchmark.models.preprocessing import Transform


def mobilenet_v2() -> tuple[nn.Module, Transform]:
    weights = models.MobileNet_V2_Weights.IMAGENET1K_V1
    return models.mobilenet_v2(weights=weights), weights.transforms()
