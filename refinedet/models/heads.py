"""Prediction heads of both modules (spec section 5)."""

from collections.abc import Sequence

from torch import Tensor, nn

from refinedet.anchors import ANCHORS_PER_CELL
from refinedet.models.backbones.base import Features
from refinedet.models.layers import Bottleneck, NormLayer, caffe_xavier_

BOTTLENECK_WIDTHS = (256, 1024)  # middle and output of the block in front of the official ResNet heads


class Heads(nn.Module):
    """For each level, a 3x3 convolution to offsets and one to class logits, three anchors per cell.

    ``block_norm``: with a normalisation, a bottleneck block of its own precedes each level's two convolutions.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, block_norm: NormLayer | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        mid, out = BOTTLENECK_WIDTHS
        self.blocks = nn.ModuleList()
        if block_norm:
            self.blocks.extend(Bottleneck(width, mid, out, block_norm, projection=True) for width in in_channels)
            in_channels = [out] * len(in_channels)
        self.loc = nn.ModuleList(nn.Conv2d(width, ANCHORS_PER_CELL * 4, 3, padding=1) for width in in_channels)
        self.conf = nn.ModuleList(
            nn.Conv2d(width, ANCHORS_PER_CELL * num_classes, 3, padding=1) for width in in_channels
        )
        for conv in (*self.loc, *self.conf):
            caffe_xavier_(conv)

    def forward(self, features: Features) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Offsets [B,n,4] and logits [B,n,C] of each level: cells row by row, the cell's three anchors."""
        if self.blocks:
            features = tuple(block(x) for block, x in zip(self.blocks, features, strict=True))
        loc = tuple(_flatten(conv(x), 4) for conv, x in zip(self.loc, features, strict=True))
        conf = tuple(_flatten(conv(x), self.num_classes) for conv, x in zip(self.conf, features, strict=True))
        return loc, conf


def _flatten(x: Tensor, values: int) -> Tensor:
    """[B,3*values,h,w] to [B,h*w*3,values]; a view of a channels-last map."""
    batch, _, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height * width * ANCHORS_PER_CELL, values)  # B may be 0
