"""The options of the commands, as typed classes: the command line and --config are read into them.

The texts under the fields are what `--help` shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

Flag = Parameter(negative=())
Several = Parameter(consume_multiple=True, negative=())
Repeated = Parameter(negative=())
Imports = Annotated[tuple[str, ...], Parameter(name="--import", negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run goes and what it is called."""

    out: Path = Path("saved_models")
    """Folder of all runs; made if it is not there."""

    name: str | None = None
    """Name of this run. Default: the time of day."""

    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets, for data named tfds:NAME. Default: TFDS's own."""

    dry_run: Annotated[bool, Flag] = False
    """Print what would be done, and stop."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Changes:
    """Fields of the recipe to change; what is left out stays as the recipe has it."""

    data: str | None = None
    """Another data set: tfds:NAME, npz:FILE, idx:FOLDER, or a name from `keras-kd list data`."""

    seeds: Annotated[tuple[int, ...] | None, Several] = None
    """One training alone and one distilled for each."""

    epochs: int | None = None
    """Passes over the data for the student, alone and distilled alike."""

    teacher_epochs: int | None = None
    """Passes over the data for the teacher."""

    batch_size: int | None = None
    """Examples in a step."""

    learning_rate: float | None = None
    """The student's highest learning rate, alone and distilled alike."""

    teacher_learning_rate: float | None = None
    """The teacher's highest learning rate."""

    temperature: float | None = None
    """T of the distillation losses."""

    student_loss_weight: float | None = None
    """The labels' share of the total loss, 0 to 1."""

    steps_per_execution: int | None = None
    """Training steps in one call of the compiled graph; more is faster."""

    validation: float | None = None
    """Share of the training examples that chooses and does not train."""

    limit: int | None = None
    """Number of training examples to use."""

    soft_targets: bool | None = None
    """Keep the teacher's answers for all seeds, or ask it in each step; the students are alike."""

    def given(self) -> dict[str, Any]:
        """Return the fields that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A person's own teacher and student, and the numbers of their training."""

    teacher: str
    """The trained teacher: FILE.keras, or module:function."""

    student: str
    """The student: FILE.keras (its weights are every seed's start), or module:function."""

    data: str
    """The data set: npz:FILE, tfds:NAME, idx:FOLDER, or a name from `keras-kd list data`."""

    seeds: Annotated[tuple[int, ...], Several] = (0,)
    """One training alone and one distilled for each."""

    epochs: int = 10
    """Passes over the data, alone and distilled alike."""

    batch_size: int = 64
    """Examples in a step."""

    learning_rate: float = 1e-3
    """Adam's rate at the start; it falls to 0 as a cosine."""

    temperature: float = 4.0
    """T of the distillation losses that take one."""

    student_loss_weight: float = 0.1
    """The labels' share of the total loss, 0 to 1."""

    validation: float = 0.1
    """Share of the training examples that chooses and does not train."""

    loss: str | None = None
    """A Keras loss for the labels. Default: by the labels and the student's last activation."""

    distillation_losses: Annotated[tuple[str, ...], Repeated] = ()
    """NAME or "NAME(key=value, ...)" from `keras-kd list losses`. Default: by the outputs."""

    distillation_loss_weights: Annotated[tuple[float, ...] | None, Several] = None
    """One weight for each of them. Default: 1 each."""

    soft_targets: bool = True
    """Keep the teacher's answers for all seeds, or ask it in each step; the students are alike."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Squeezed:
    """How a student is made smaller."""

    keep: float = 0.5
    """Share of the channels that stay when it is pruned; 1: nothing is pruned."""

    importance: Literal["taylor", "magnitude", "batchnorm"] = "taylor"
    """What decides which channels stay."""

    quantise: bool = True
    """Learn with quantised weights and activations in the last stage, for the integer files."""

    weight_bits: Literal[8, 4] = 8
    """Bits of a weight in that stage."""

    prune_epochs: int | None = None
    """Passes over the data after pruning. Default: as many as the student's."""

    quantise_epochs: int | None = None
    """Passes of the quantised stage. Default: a third of the student's."""

    formats: Annotated[tuple[str, ...] | None, Several] = None
    """Names from `keras-kd list exports`. Default: all that need no other package."""

    def given(self) -> dict[str, Any]:
        """Return what the stages are told."""
        return {name: value for name, value in vars(self).items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OwnStudent:
    """A person's own trained student, to be made smaller; without one, a recipe's is distilled."""

    student: str | None = None
    """The trained student: FILE.keras, or module:function; --data names its data."""

    teacher: str | None = None
    """Who teaches the smaller ones: FILE.keras, or module:function. Default: the student itself."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Storing:
    """What a store of soft targets is built from, and what it keeps."""

    teacher: Annotated[tuple[str, ...], Repeated]
    """FILE.keras, or module:function. Repeatable: several are asked as one, an ensemble."""

    data: str
    """The data set: npz:FILE, tfds:NAME, idx:FOLDER, or a name from `keras-kd list data`."""

    out: Path
    """Folder of the store."""

    split: Literal["train", "validation", "test"] = "train"
    """Which examples of it; train is what `distill` trains on."""

    validation: float = 0.1
    """Share of the training examples that is drawn for validation, as in `distill`."""

    data_dir: Path | None = None
    """Folder of prepared TensorFlow Datasets, for data named tfds:NAME. Default: TFDS's own."""

    layers: Annotated[tuple[str, ...], Several] = ()
    """Paths of the teacher's layers whose outputs are kept too."""

    top_k: int | None = None
    """How many of the largest logits to keep. Default: all."""

    temperatures: Annotated[tuple[float, ...], Several] = (1.0,)
    """With --top-k: each temperature that a student will learn at."""

    dtype: Literal["float16", "float32"] = "float16"
    """What the numbers are stored in."""

    batch_size: int = 256
    """Examples that the teacher is asked at once."""

    shard: str | None = None
    """I/N: examples I, I + N, I + 2N, ... alone; `merge` puts the parts together."""

    outputs: Literal["auto", "logits", "probabilities", "values"] = "auto"
    """What the teacher answers. Default: by the labels and its last activation."""

    activation: Literal["softmax", "sigmoid"] = "softmax"
    """What belongs between its logits and probabilities."""

    dry_run: Annotated[bool, Flag] = False
    """Print what would be done, and stop."""


PLACE = Place()
NO_CHANGES = Changes()
NO_STUDENT = OwnStudent()
SQUEEZED = Squeezed()
