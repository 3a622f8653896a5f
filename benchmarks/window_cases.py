"""Cases of Swin Transformers and position embeddings, beside the forms of torchvision, timm and DETR."""

import importlib
import math
from collections.abc import Sequence

import torch
from cases import Candidate, Candidates, Case, Formula, Target, timm_layers
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import swin_transformer

from torchvision_layers.experimental import nn as enn

__all__ = ["WINDOW_CASES"]

_WINDOWS = {1: 7, 2: 8}
# Parts of the keys of our layers, and what timm has there.
_IN_TIMM = {"mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2", "linear": "reduction"}


def channels_first(module: nn.Module, layer: nn.Module, names: dict[str, str] | None = None) -> Candidate:
    """A module for images of shape (N, H, W, C) between two permutations, with the weights of our layer."""
    state = {}
    for key, value in layer.state_dict().items():
        for ours, theirs in (names or {}).items():
            key = key.replace(ours, theirs)
        state[key] = value
    own = module.state_dict()
    module.load_state_dict({**own, **{key: value for key, value in state.items() if key in own}})
    return Candidate(Formula(lambda x: module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), module))


def block(layer: type[enn.SwinBlock], shape: Sequence[int], *, heads: int, shift: int, version: int) -> Candidates:
    channels, window = shape[1], _WINDOWS[version]
    ours = layer(channels, heads, window, shift, version=version)
    is_first = version == 1
    peer = swin_transformer.SwinTransformerBlock if is_first else swin_transformer.SwinTransformerBlockV2
    theirs = peer(channels, heads, [window] * 2, [shift] * 2)
    candidates = {"torchvision": channels_first(theirs, ours), "ours": Candidate(ours)}
    if is_first and timm_layers():
        timm = importlib.import_module("timm.models.swin_transformer")
        theirs = timm.SwinTransformerBlock(channels, tuple(shape[2:]), heads, window_size=window, shift_size=shift)
        candidates["timm"] = channels_first(theirs, ours, _IN_TIMM)
    return candidates


def attention(layer: type[enn.WindowAttention], shape: Sequence[int], *, heads: int, shift: int) -> Candidates:
    ours = layer(shape[1], heads, 7, shift)
    theirs = swin_transformer.ShiftedWindowAttention(shape[1], [7, 7], [shift] * 2, heads)
    return {"torchvision": channels_first(theirs, ours), "ours": Candidate(ours)}


def merging(layer: type[enn.PatchMerging], shape: Sequence[int], *, version: int) -> Candidates:
    ours = layer(shape[1], version=version)
    peer = swin_transformer.PatchMerging if version == 1 else swin_transformer.PatchMergingV2
    candidates = {"torchvision": channels_first(peer(shape[1]), ours, _IN_TIMM), "ours": Candidate(ours)}
    if version == 1 and timm_layers():
        theirs = importlib.import_module("timm.models.swin_transformer").PatchMerging(shape[1])
        candidates["timm"] = channels_first(theirs, ours, _IN_TIMM)
    return candidates


def learned_positions(layer: type[enn.PositionEmbedding2d], shape: Sequence[int], *, grid: int) -> Candidates:
    ours = layer(shape[1], grid)
    size = tuple(shape[2:])

    def formula(input: Tensor) -> Tensor:
        weight = ours.weight
        return input + (weight if size == (grid, grid) else F.interpolate(weight, size, mode="bicubic"))

    return {"x + embedding": Candidate(Formula(formula, ours)), "ours": Candidate(ours)}


def sine_positions(layer: type[enn.SinePositionEmbedding2d], shape: Sequence[int]) -> Candidates:
    ours = layer(shape[1])
    features = shape[1] // 2

    def original(input: Tensor) -> Tensor:
        """As in the code of DETR, without padding."""
        inside = torch.ones(input.shape[0], *input.shape[2:], device=input.device)
        rows, columns = inside.cumsum(1), inside.cumsum(2)
        rows = rows / (rows[:, -1:, :] + 1e-6) * 2 * math.pi
        columns = columns / (columns[:, :, -1:] + 1e-6) * 2 * math.pi
        periods = 10000 ** (2 * (torch.arange(features, device=input.device) // 2) / features)
        parts = [
            torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), 4).flatten(3)
            for angles in (rows[..., None] / periods, columns[..., None] / periods)
        ]
        return input + torch.cat(parts, 3).permute(0, 3, 1, 2)

    return {"DETR": Candidate(Formula(original)), "ours": Candidate(ours)}


EARLY, LATE = (2, 96, 56, 56), (8, 384, 14, 14)

WINDOW_CASES = [
    Case(enn.SwinBlock, EARLY, block, Target(1.02, 1.02), {"heads": 3, "shift": 3, "version": 1}),
    Case(enn.SwinBlock, LATE, block, Target(1.02, 1.02), {"heads": 12, "shift": 0, "version": 1}),
    Case(enn.SwinBlock, (2, 96, 64, 64), block, Target(1.02, 1.02), {"heads": 3, "shift": 4, "version": 2}),
    Case(enn.WindowAttention, EARLY, attention, Target(1.02, 1.02), {"heads": 3, "shift": 3}),
    Case(enn.PatchMerging, EARLY, merging, Target(1.02, 1.02), {"version": 1}),
    Case(enn.PatchMerging, EARLY, merging, Target(1.02, 1.02), {"version": 2}),
    Case(enn.PositionEmbedding2d, LATE, learned_positions, Target(1.02, 1.02), {"grid": 14}),
    Case(enn.PositionEmbedding2d, LATE, learned_positions, Target(1.02, 1.02), {"grid": 16}),
    Case(enn.SinePositionEmbedding2d, (8, 256, 28, 28), sine_positions, Target(1.02, 1.02)),
]
