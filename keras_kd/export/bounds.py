"""What a file must keep to be let out: named bounds, each of them optional."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_kd import checks


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How far a file may be from the Keras model, and how large and slow it may be.

    Every format has defaults of its own (`TARGET.bounds`), tight enough for a wrong weight to fail
    them. A bound that is `None` is measured and written in the certificate, and judges nothing.

    Args:
        max_difference: Largest |file - model| allowed in any output, as a share of the largest
            |output| of the model over the verification data.
        agreement: Share of decisions (argmax, or the side of the threshold) that must be equal,
            0 to 1.
        accuracy_drop: How much worse the file's task metric may be than the Keras model's: 0.01
            is one point of accuracy, or 1% more of an error such as the mean absolute one. Needs
            labels.
        steps: Largest |file - model| of any output in steps of its quantisation, values at the
            end of the range apart. Only for outputs of whole numbers.
        saturation: Share of output values that may lie at the end of their range, 0 to 1.
        float_islands: How many pieces of the graph may compute in float between quantised ends.
        bytes: Largest size of the file.
        arena_bytes: Largest working memory (LiteRT's arena).
        latency_ms: Longest median time of one run, in milliseconds, on this machine.

    Raises:
        ValueError: "`max_difference` must be positive", "`agreement` must be between 0 and 1",
            "`steps` must be 0 or more", "`bytes` must be a whole number".
        TypeError: "`steps` must be a number".

    Example:
        ```python
        from keras_kd.export.bounds import Bounds

        tight = Bounds(accuracy_drop=0.005, float_islands=0, bytes=300_000)
        print(tight.stated())
        ```
    """

    max_difference: float | None = None
    agreement: float | None = None
    accuracy_drop: float | None = None
    steps: float | None = None
    saturation: float | None = None
    float_islands: int | None = None
    bytes: int | None = None
    arena_bytes: int | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that bound nothing."""
        for name, value in self.stated().items():
            _CHECKS[name](name, value)

    def stated(self) -> dict[str, float | int]:
        """Return the bounds that are set, by name."""
        return {
            name: value for name, value in dataclasses.asdict(self).items() if value is not None
        }

    def changed(self, given: Bounds | Mapping[str, Any] | None) -> Bounds:
        """Return these bounds with what was given in place of the defaults.

        Args:
            given: A dict changes the bounds that it names (`None` lifts one); a `Bounds` replaces
                all of them; `None` changes nothing.

        Raises:
            ValueError: "There is no bound", and the refusals of `Bounds`.
            TypeError: "The bounds of a format must be a Bounds or a dict".
        """
        if given is None or isinstance(given, Bounds):
            return given or self
        if not isinstance(given, Mapping):
            raise checks.bad_type(
                "The bounds of a format must be a Bounds or a dict.",
                given=repr(given),
                expected='for example {"accuracy_drop": 0.01}',
                fix='write bounds={"tflite_int8": {"accuracy_drop": 0.01}}.',
            )
        for name in given:
            if name not in NAMES:
                raise checks.unknown_name("bound", name, NAMES)
        return dataclasses.replace(self, **given)


NAMES = tuple(field.name for field in dataclasses.fields(Bounds))


def _not_negative(name: str, value: object) -> None:
    if checks.number(name, value) < 0:
        raise checks.bad_value(
            f"`{name}` must be 0 or more.",
            given=value,
            expected="a number >= 0",
            fix=f"pass the largest that you accept, for example {name}=1, or None for no bound.",
        )


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise checks.bad_value(
            f"`{name}` must be a whole number of 0 or more.",
            given=repr(value),
            expected="0, 1, 2, …",
            fix=f"pass the largest that you accept, for example {name}=1, or None for no bound.",
        )


_CHECKS = {
    "max_difference": checks.positive,
    "agreement": checks.fraction,
    "accuracy_drop": _not_negative,
    "steps": _not_negative,
    "saturation": checks.fraction,
    "float_islands": _whole,
    "bytes": _whole,
    "arena_bytes": _whole,
    "latency_ms": checks.positive,
}
