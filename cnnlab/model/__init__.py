"""Networks: each takes (in_channels, num_classes, own arguments) and turns normalised images into logits."""

from cnnlab.model.convnet import ConvNet
from cnnlab.model.external import Timm, Torchvision
from cnnlab.model.layers import Normalize, normalised
from cnnlab.model.resnet import ResNet, WideResNet
from cnnlab.model.speednet import SpeedNet

__all__ = ["ConvNet", "Normalize", "ResNet", "SpeedNet", "Timm", "Torchvision", "WideResNet", "normalised"]
