"""The front door: the names of the contract, loaded when they are touched."""

from __future__ import annotations

import inspect
import pathlib
import subprocess
import sys

import keras
import pytest

import keras_kd as kd

CONTRACT = (
    "Distiller",
    "LogitsDistillation",
    "FeatureDistillation",
    "Teacher",
    "load_distiller",
    "compare",
    "export_student",
    "losses",
    "callbacks",
    "metrics",
    "data",
    "teaching",
    "MutualDistiller",
    "reuse_classifier",
    "SoftTargets",
    "SoftBatch",
    "ReplayableAugmentation",
    "augmentation",
)
LOSSES = (
    "DistillationLoss",
    "LogitsDistillation",
    "SoftCrossEntropy",
    "HardLabelDistillation",
    "LogitMatching",
    "DecoupledDistillation",
    "NormalizedDistillation",
    "DIST",
    "LogitStandardization",
    "MultiLevelLogits",
    "MultiLabelDistillation",
    "BoundedRegression",
    "FeatureDistillation",
    "AttentionTransfer",
    "FlowOfSolution",
    "NeuronSelectivity",
    "VariationalInformation",
    "OverhaulFeature",
    "KnowledgeReview",
    "ChannelWiseDistillation",
    "MaskedGenerative",
    "RelationalDistillation",
    "SimilarityPreserving",
    "ProbabilisticTransfer",
    "CorrelationCongruence",
    "ContrastiveRepresentation",
)


def fresh(code: str) -> str:
    """Run code in a fresh process and return what it prints."""
    root = pathlib.Path(kd.__file__).parents[1]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    return done.stdout.strip()


@pytest.mark.parametrize("name", CONTRACT)
def test_the_names_of_the_contract_are_there(name) -> None:
    assert name in kd.__all__
    assert name in dir(kd)
    assert getattr(kd, name) is not None


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_are_there(name) -> None:
    assert name in kd.losses.__all__
    assert inspect.isclass(getattr(kd.losses, name))


def test_there_are_no_more_than_fifteen_names_beside_the_rooms() -> None:
    assert "__version__" in kd.__all__
    names = [name for name in kd.__all__ if name != "__version__"]
    things = [name for name in names if not inspect.ismodule(getattr(kd, name))]
    assert len(names) == len(set(names))
    assert len(things) <= 15
    assert all(getattr(kd, name) is not None for name in names)


def test_the_version_is_the_package_version() -> None:
    assert kd.__version__.count(".") == 2


def test_importing_loads_neither_tensorflow_nor_keras() -> None:
    code = (
        "import sys, keras_kd; dir(keras_kd); keras_kd.__version__\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    assert fresh(code) == "[]"


def test_an_unknown_name_answers_with_the_closest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Distler'\. Did you mean 'Distiller'"):
        kd.Distler  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'zzzz'\.$"):
        kd.zzzz  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Studnt'"):
        exec("from keras_kd import Studnt")


def parameters(function) -> list[tuple[str, object]]:
    signature = inspect.signature(function)
    return [(p.name, p.default) for p in signature.parameters.values() if p.name != "self"]


def test_the_distiller_is_called_as_keras_calls_its_own() -> None:
    ours, theirs = (
        parameters(distiller.__init__) for distiller in (kd.Distiller, keras.distillation.Distiller)
    )
    assert ours == theirs


@pytest.mark.parametrize("name", ["LogitsDistillation", "FeatureDistillation"])
def test_losses_start_with_keras_own_parameters(name) -> None:
    ours = parameters(getattr(kd, name).__init__)
    theirs = parameters(getattr(keras.distillation, name).__init__)
    assert ours[: len(theirs)] == theirs


def test_what_belongs_to_keras_is_a_keras_thing() -> None:
    assert issubclass(kd.Distiller, keras.Model)
    assert issubclass(kd.losses.DistillationLoss, keras.distillation.DistillationLoss)
    assert issubclass(kd.callbacks.StudentCheckpoint, keras.callbacks.ModelCheckpoint)
    for name in ("Agreement", "TeacherDivergence", "ExpectedCalibrationError"):
        assert issubclass(getattr(kd.metrics, name), keras.metrics.Metric)
