"""What every export target shares: how it is asked, and what it is asked about.

Targets import this file (`base.Student`, `base.Calibration`, `base.Bounds`, `base.quiet`); what
stands behind these names lies in the `base_*.py` files beside it.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from keras_kd.export.base_calibration import Calibration
from keras_kd.export.base_quiet import quiet
from keras_kd.export.base_structures import Tensor, is_functional, leaves
from keras_kd.export.base_student import ENDPOINT, Student
from keras_kd.export.bounds import Bounds

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray]

__all__ = [
    "ENDPOINT",
    "Bounds",
    "Calibration",
    "Opened",
    "Student",
    "Target",
    "Tensor",
    "is_functional",
    "leaves",
    "quiet",
]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A file read back: how to run it and what it says about itself.

    Attributes:
        run: Named arrays of the student's types in, float32 out (the batch first): what goes in is
            quantised, what comes out dequantised, where the file holds whole numbers.
        inputs: Name to {"shape", "dtype"}, and {"scale", "zero_point"} where it is quantised.
        outputs: Likewise.
        ops: How often each operator stands in the file.
    """

    run: Callable[[Arrays], dict[str, np.ndarray]]
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]
    ops: dict[str, int]


class Target(abc.ABC):
    """One file format: how to write it, and how to run it the way its users will.

    A new target is one new file with a subclass and `TARGET = Subclass()`, and one line in
    `keras_kd.export.TARGETS`.

    Attributes:
        file: What the file is called; `{name}` stands for the caller's name.
        bounds: The bounds that a file must keep where the caller states none.
        quantised: Whether all numbers are whole (int8, uint8, int16): then it needs a
            `Calibration`, unless the student carries its own ranges.
    """

    file: ClassVar[str]
    bounds: ClassVar[Bounds] = Bounds(max_difference=1e-4, agreement=0.999)
    quantised: ClassVar[bool] = False

    def refuses(self, student: Student) -> str | None:
        """Say why this format is not for this student, as far as is known before converting.

        Returns:
            `None` to go on, or an error's text in three parts (given, expected, fix), to be
            raised as `ValueError(text)`.
        """
        return None

    def needs_calibration(self, student: Student) -> bool:
        """Say whether `write` needs a `Calibration` for this student."""
        return self.quantised and not student.carries_ranges

    @property
    def format(self) -> str:
        """The name of the format: that of the target's file."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @abc.abstractmethod
    def write(self, student: Student, path: Path, calibration: Calibration | None = None) -> None:
        """Write the student to `path`, which does not exist yet.

        Args:
            student: What is written.
            path: The file or folder to make.
            calibration: Examples that the ranges of a quantised format are taken from. `None`
                where the format needs none, or the student carries its own.
        """

    @abc.abstractmethod
    def open(self, path: Path) -> Opened:
        """Read the file back with the runtime that its users have."""
