"""Distillation losses: the mathematics, one paper a file.

Each file holds pure functions on logits or features, and a class that remembers their
hyper-parameters. None of them knows a layer, a model or a file.
"""

from keras_kd.losses.attention_transfer import AttentionTransfer
from keras_kd.losses.base import DistillationLoss
from keras_kd.losses.bounded_regression import BoundedRegression
from keras_kd.losses.channel_wise import ChannelWiseDistillation
from keras_kd.losses.contrastive_representation import ContrastiveRepresentation
from keras_kd.losses.correlation_congruence import CorrelationCongruence
from keras_kd.losses.decoupled import DecoupledDistillation
from keras_kd.losses.dist import DIST
from keras_kd.losses.feature_distillation import FeatureDistillation
from keras_kd.losses.flow_of_solution import FlowOfSolution
from keras_kd.losses.hard_label import HardLabelDistillation
from keras_kd.losses.knowledge_distillation import LogitsDistillation, SoftCrossEntropy
from keras_kd.losses.knowledge_review import KnowledgeReview
from keras_kd.losses.logit_matching import LogitMatching
from keras_kd.losses.logit_standardization import LogitStandardization
from keras_kd.losses.masked_generative import MaskedGenerative
from keras_kd.losses.multi_label import MultiLabelDistillation
from keras_kd.losses.multi_level import MultiLevelLogits
from keras_kd.losses.neuron_selectivity import NeuronSelectivity
from keras_kd.losses.normalized import NormalizedDistillation
from keras_kd.losses.overhaul_feature import OverhaulFeature
from keras_kd.losses.probabilistic_transfer import ProbabilisticTransfer
from keras_kd.losses.relational import RelationalDistillation
from keras_kd.losses.similarity_preserving import SimilarityPreserving
from keras_kd.losses.variational_information import VariationalInformation

__all__ = [
    "DIST",
    "AttentionTransfer",
    "BoundedRegression",
    "ChannelWiseDistillation",
    "ContrastiveRepresentation",
    "CorrelationCongruence",
    "DecoupledDistillation",
    "DistillationLoss",
    "FeatureDistillation",
    "FlowOfSolution",
    "HardLabelDistillation",
    "KnowledgeReview",
    "LogitMatching",
    "LogitStandardization",
    "LogitsDistillation",
    "MaskedGenerative",
    "MultiLabelDistillation",
    "MultiLevelLogits",
    "NeuronSelectivity",
    "NormalizedDistillation",
    "OverhaulFeature",
    "ProbabilisticTransfer",
    "RelationalDistillation",
    "SimilarityPreserving",
    "SoftCrossEntropy",
    "VariationalInformation",
]
