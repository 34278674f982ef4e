"""The RefineDet network and its parts."""

from refinedet.models.backbones.base import Backbone
from refinedet.models.refinedet import ModelConfig, RefineDet, build, caffe_multipliers, from_config

__all__ = ["Backbone", "ModelConfig", "RefineDet", "build", "caffe_multipliers", "from_config"]
