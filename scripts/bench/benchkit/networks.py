"""The three pairs of networks, as numbers: no framework is loaded here, both build from it."""

from __future__ import annotations

import dataclasses

CLASSES = 10
PIXELS = 784
SIDE = 28
VOCABULARY = 1000
LENGTH = 16
HEADS = 4


@dataclasses.dataclass(frozen=True)
class Pair:
    """A teacher and a student, and the layers that feature losses compare.

    Attributes:
        kind: "mlp", "cnn" or "transformer".
        teacher: its numbers: the widths of the dense layers; the channels of the blocks; width,
            blocks and the width before the logits.
        student: the same of the student.
        hint: layers of different width, one of each (teacher, student): a projector is needed.
        equal: layers of equal shape, for what has no projector.
        scale: by what the student is widened until its weights are more than 1 MB.
    """

    kind: str
    teacher: tuple[int, ...]
    student: tuple[int, ...]
    hint: tuple[str, str]
    equal: tuple[str, str]
    scale: int

    def wide(self) -> tuple[int, ...]:
        """Return the numbers of the student of more than 1 MB."""
        if self.kind == "transformer":
            width, blocks, neck = self.student
            return (width * self.scale, blocks, neck * self.scale)
        return tuple(width * self.scale for width in self.student)


PAIRS = {
    "mlp": Pair(
        kind="mlp",
        teacher=(512, 512, 256),
        student=(256, 64),
        hint=("hidden3", "hidden2"),
        equal=("hidden3", "hidden1"),
        scale=2,
    ),
    "cnn": Pair(
        kind="cnn",
        teacher=(16, 32, 64, 32),
        student=(8, 16, 32),
        hint=("block2", "block2"),
        equal=("block4", "block3"),
        scale=8,
    ),
    "transformer": Pair(
        kind="transformer",
        teacher=(64, 3, 64),
        student=(32, 2, 64),
        hint=("block2", "block1"),
        equal=("neck", "neck"),
        scale=4,
    ),
}
POOLED = ("block1", "block2")  # blocks of the CNN that end in a pooling of 2 × 2


def data(kind: str, count: int) -> tuple:
    """Make random inputs and labels, the same in every process."""
    import numpy as np

    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, count).astype("int32")
    if kind == "transformer":
        return rng.integers(0, VOCABULARY, (count, LENGTH)).astype("int32"), y
    shape = (PIXELS,) if kind == "mlp" else (SIDE, SIDE, 1)
    return rng.random((count, *shape), dtype="float32"), y
