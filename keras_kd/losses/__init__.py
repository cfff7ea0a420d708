"""Distillation losses: the mathematics, one paper a file.

Each file holds pure functions on logits or features, and a class that remembers their
hyper-parameters. None of them knows a layer, a model or a file.
"""

from keras_kd.losses.attention_transfer import AttentionTransfer
from keras_kd.losses.base import DistillationLoss
from keras_kd.losses.decoupled import DecoupledDistillation
from keras_kd.losses.feature_distillation import FeatureDistillation
from keras_kd.losses.hard_label import HardLabelDistillation
from keras_kd.losses.knowledge_distillation import LogitsDistillation, SoftCrossEntropy
from keras_kd.losses.logit_matching import LogitMatching
from keras_kd.losses.neuron_selectivity import NeuronSelectivity
from keras_kd.losses.normalized import NormalizedDistillation
from keras_kd.losses.overhaul_feature import OverhaulFeature

__all__ = [
    "AttentionTransfer",
    "DecoupledDistillation",
    "DistillationLoss",
    "FeatureDistillation",
    "HardLabelDistillation",
    "LogitMatching",
    "LogitsDistillation",
    "NeuronSelectivity",
    "NormalizedDistillation",
    "OverhaulFeature",
    "SoftCrossEntropy",
]
