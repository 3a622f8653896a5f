"""The models: how to build each, and the batch that it gets."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import backbone_utils

from .stirring import stir

__all__ = ["ZOO", "Entry", "Subject", "build"]

#: Images on which statistics of norms are measured. The first ones calibrate the model.
STATISTICS = 8
SEED = 0

CLASSIFIERS = (
    "alexnet vgg11_bn googlenet inception_v3 squeezenet1_1 densenet121 resnet18 resnet50 resnext50_32x4d "
    "wide_resnet50_2 shufflenet_v2_x1_0 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet1_0 efficientnet_b0 "
    "efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny vit_b_32 swin_t swin_v2_t maxvit_t"
)
SEGMENTERS = "deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large fcn_resnet50"
BACKBONES = ("resnet50", "mobilenet_v3_large")
DETECTORS = "fasterrcnn_mobilenet_v3_large_320_fpn retinanet_resnet50_fpn_v2"
TIMM = (
    "resnetv2_50 res2net50_14w_8s resnest14d seresnet50 ecaresnet26t skresnet18 hrnet_w18_small dla34 cspresnet50 "
    "cspdarknet53 ese_vovnet19b_dw ghostnet_100 mobilenetv4_conv_small mobileone_s0 repvgg_a0 rexnet_100 "
    "tf_efficientnet_lite0 efficientnet_es fbnetc_100 hardcorenas_a lcnet_050 mixnet_s tinynet_e dm_nfnet_f0 "
    "convnextv2_atto convmixer_768_32 poolformer_s12 edgenext_xx_small mobilevit_xxs efficientformerv2_s0 levit_128s "
    "vit_tiny_patch16_224 deit_tiny_patch16_224 cait_xxs24_224 xcit_nano_12_p16_224 pvt_v2_b0 twins_svt_small "
    "coat_lite_tiny focalnet_tiny_srf inception_resnet_v2 fasternet_t0 starnet_s1"
)

#: Models whose positional embeddings or pooling need their own size.
FIXED = {
    *("vit_b_32", "maxvit_t", "efficientformerv2_s0", "levit_128s", "vit_tiny_patch16_224", "deit_tiny_patch16_224"),
    *("cait_xxs24_224", "xcit_nano_12_p16_224", "twins_svt_small", "coat_lite_tiny"),
}


@dataclass(frozen=True)
class Entry:
    """A model of the zoo."""

    group: str
    #: Called with the side of the images; returns the whole model.
    make: Callable[[int], nn.Module]
    #: Attribute that holds the part to fold, to quantize and to export; empty for the whole model.
    part: str = ""
    size: int = 224
    is_fixed: bool = False


@dataclass
class Subject:
    """A model with its weights, and the batch of its part."""

    model: nn.Module
    part: str
    images: list[Tensor]
    batch: Tensor

    @property
    def network(self) -> nn.Module:
        return getattr(self.model, self.part) if self.part else self.model

    def try_in_place(self, network: nn.Module) -> None:
        """Runs the whole model with ``network`` in place of its part."""
        if not self.part:
            return
        setattr(self.model, self.part, network)
        for found in self.model(self.images):
            if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
                raise ValueError("the detections are not finite")


def build(entry: Entry, size: int, count: int) -> Subject:
    """The model with seeded weights and stirred statistics, in eval mode, and a batch of ``count`` images of noise."""
    torch.manual_seed(SEED)
    model: Any = entry.make(size).eval()
    generator = torch.Generator().manual_seed(SEED)
    images = list(torch.randn(STATISTICS, 3, size, size, generator=generator))
    batch = model.transform(images)[0].tensors if entry.part else torch.stack(images)
    subject = Subject(model, entry.part, images[:count], batch[:count])
    stir(subject.network, batch, generator)
    return subject


def _classifier(name: str, size: int) -> nn.Module:
    options: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **options)


def _segmenter(name: str, size: int) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, weights_backbone=None)


def _backbone(name: str, size: int) -> nn.Module:
    if name.startswith("resnet"):
        return backbone_utils.resnet_fpn_backbone(backbone_name=name, weights=None)
    return backbone_utils.mobilenet_backbone(backbone_name=name, weights=None, fpn=True)


def _detector(name: str, size: int) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, min_size=size, max_size=size)


def _timm(name: str, size: int) -> nn.Module:
    return importlib.import_module("timm").create_model(name, pretrained=False)


def _entries(group: str, make: Callable[[str, int], nn.Module], names: str, part: str = "") -> dict[str, Entry]:
    return {name: Entry(group, partial(make, name), part, is_fixed=name in FIXED) for name in names.split()}


#: All models, by name.
ZOO: dict[str, Entry] = {
    **_entries("torchvision, classifiers", _classifier, CLASSIFIERS),
    **_entries("torchvision, segmenters", _segmenter, SEGMENTERS),
    **{f"{name}_fpn": Entry("torchvision, backbones with FPN", partial(_backbone, name)) for name in BACKBONES},
    **_entries("torchvision, detectors", _detector, DETECTORS, "backbone"),
    **_entries("timm", _timm, TIMM),
}
