"""The RefineDet network and its parts."""

from refinedet.models.backbones.base import Backbone
from refinedet.models.build import build, from_config, outline
from refinedet.models.config import ModelConfig
from refinedet.models.pretrained import load_pretrained
from refinedet.models.refinedet import RefineDet, caffe_multipliers
from refinedet.models.wrappers import unwrap, unwrap_names

__all__ = [
    "Backbone",
    "ModelConfig",
    "RefineDet",
    "build",
    "caffe_multipliers",
    "from_config",
    "load_pretrained",
    "outline",
    "unwrap",
    "unwrap_names",
]
