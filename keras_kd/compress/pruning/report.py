"""What pruning left of what: channels, weights and work, layer by layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_kd import checks
from keras_kd.compress import networks
from keras_kd.compress.pruning import costs, tracing
from keras_kd.compress.pruning.channels import Channels, Member


@dataclasses.dataclass(frozen=True)
class PruningReport:
    """What is left of each layer, and of the whole; prints as a table.

    Attributes:
        layers: path of a layer with weights -> `{"channels": (before, after), "parameters": (…),
            "macs": (…)}`; channels are those that it makes, and are absent for a layer that makes
            none of its own. MACs are for one example, `None` where an axis is open.
        parameters: of the whole, before and after.
        macs: of the whole, before and after; `None` where they are not known.
        whole: path of a layer that keeps all its channels -> why.

    Example:
    ```python
    import keras
    import keras_kd as kd

    student = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(16, name="hidden"), keras.layers.Dense(3)]
    )
    smaller = kd.compress.prune_channels(student, keep=0.25, importance="magnitude")
    report = kd.compress.pruning_report(student, smaller)
    print(report.layers["hidden"]["channels"], report.parameters)  # (16, 4) (131, 35)
    ```
    """

    layers: dict[str, dict[str, tuple[Any, Any]]]
    parameters: tuple[int, int]
    macs: tuple[int | None, int | None]
    whole: dict[str, str]

    @property
    def bytes(self) -> tuple[int, int]:
        """The size of all weights in float32, before and after."""
        return costs.BYTES * self.parameters[0], costs.BYTES * self.parameters[1]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python, ready for JSON."""
        return dataclasses.asdict(self) | {"bytes": self.bytes}

    def __str__(self) -> str:
        """Return the table."""
        total = {"parameters": self.parameters, "macs": self.macs}
        lines = [["layer", "channels", "parameters", "MACs"]]
        for path, row in {**self.layers, "total": total}.items():
            cells = [_cell(row.get(key)) for key in ("channels", "parameters", "macs")]
            lines.append([path, *cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        ]
        kept = [f"whole: {path}, for {why}" for path, why in self.whole.items()]
        return "\n".join([*table, *kept])

    __repr__ = __str__


def pruning_report(before: keras.Model, after: keras.Model) -> PruningReport:
    """Compare a model with what `prune_channels` left of it, layer by layer.

    Args:
        before: the model that was pruned.
        after: the smaller one, whether it was trained since or not.

    Returns:
        A `PruningReport`: `.layers`, `.parameters`, `.bytes`, `.macs` (before and after) and
        `.whole`, which says what keeps all its channels and why. It prints as a table.

    Raises:
        ValueError: "… is not what pruning left of …" where the layers are others, and what
            `prune_channels` says of a model that cannot be followed.

    Example:
    ```python
    import keras
    import keras_kd as kd

    student = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(),
         keras.layers.Dense(2)]
    )
    smaller = kd.compress.prune_channels(student, macs=0.5, importance="magnitude")
    print(kd.compress.pruning_report(student, smaller))
    ```
    """
    found = []
    for model in (before, after):
        networks.check(model)
        found.append(tracing.trace(model))
    members = [_with_weights(channels) for channels in found]
    if list(members[0]) != list(members[1]):
        other = sorted(set(members[0]) ^ set(members[1])) or list(members[1])
        raise checks.bad_value(
            f"{after.name!r} is not what pruning left of {before.name!r}.",
            given=f"models that differ in the layers {', '.join(other[:5])}",
            expected="the layers of the one, in the same order, in the other",
            fix="pass the model that was given to prune_channels, and what it returned.",
        )
    layers = {path: _row(found, [own[path] for own in members]) for path in members[0]}
    macs = [_total(channels, costs.macs_of(channels)) for channels in found]
    return PruningReport(
        layers,
        (before.count_params(), after.count_params()),
        (macs[0], macs[1]),
        found[0].whole,
    )


def _with_weights(channels: Channels) -> dict[str, Member]:
    return {member.path: member for member in channels.members if member.weights}


def _row(found: list[Channels], pair: list[Member]) -> dict[str, tuple[Any, Any]]:
    rows = []
    for channels, member in zip(found, pair, strict=True):
        made = [len(part.labels) for part in member.slices if part.role == "makes"]
        numbers = {"channels": made[0] if made else None}
        numbers["parameters"] = _total(channels, member.parameters)
        numbers["macs"] = _total(channels, member.macs)
        rows.append(numbers)
    both = {key: (rows[0][key], rows[1][key]) for key in rows[0]}
    return {key: value for key, value in both.items() if key != "channels" or value[0] is not None}


def _total(channels: Channels, terms: list) -> int | None:
    return costs.total(channels, terms, np.ones(channels.units, bool))


def _cell(pair: tuple[Any, Any] | None) -> str:
    """Write one number where both are equal, else both."""
    if pair is None:
        return ""
    before, after = ("–" if value is None else f"{value:,}" for value in pair)
    return before if before == after else f"{before} → {after}"
