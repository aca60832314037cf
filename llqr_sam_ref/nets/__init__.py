"""Networks to train and to test on: models and nothing else, a family a file."""

from llqr_sam_ref.nets.mlp import mlp
from llqr_sam_ref.nets.resnet import ResNet, resnet18, resnet34, resnet50

__all__ = ["ResNet", "mlp", "resnet18", "resnet34", "resnet50"]
