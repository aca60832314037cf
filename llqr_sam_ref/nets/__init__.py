"""Networks to train and to test on: models and nothing else, a family a file."""

from llqr_sam_ref.errors import needs

needs("torch", "torch")

from llqr_sam_ref.nets.mlp import mlp
from llqr_sam_ref.nets.resnet import ResNet, resnet18, resnet34, resnet50
from llqr_sam_ref.nets.towers import TwoTowers, contrastive_loss, two_towers
from llqr_sam_ref.nets.transformer import Decoder, EncoderDecoder, gpt2_small
from llqr_sam_ref.nets.vit import VisionTransformer, vit_tiny
from llqr_sam_ref.nets.wide_resnet import WideResNet, wide_resnet28_10

__all__ = [
    "Decoder",
    "EncoderDecoder",
    "ResNet",
    "TwoTowers",
    "VisionTransformer",
    "WideResNet",
    "contrastive_loss",
    "gpt2_small",
    "mlp",
    "resnet18",
    "resnet34",
    "resnet50",
    "two_towers",
    "vit_tiny",
    "wide_resnet28_10",
]
