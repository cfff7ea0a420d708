"""What is to be left of a network, and which channels go for it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from keras_kd import checks
from keras_kd.compress import networks
from keras_kd.compress.pruning import choosing, costs, importance, rebuilding, tracing
from keras_kd.compress.pruning.channels import Group

IMPORTANCE = ("taylor", "magnitude", "batchnorm")


@dataclasses.dataclass(frozen=True)
class Amount:
    """How much is to be left, said in one way.

    Args:
        keep: the share of the channels of each group.
        macs: the share of the multiply-accumulates.
        bytes: the size of the weights in float32.

    Raises:
        ValueError: "Say in one way how much is to be left", "`keep` must be …" and the like.
    """

    keep: float | None = None
    macs: float | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse none or several, and what is out of range."""
        given = {key: value for key, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise checks.bad_value(
                "Say in one way how much is to be left.",
                given=", ".join(f"{key}={value}" for key, value in given.items()) or "nothing",
                expected="one of keep=, macs=, bytes=",
                fix="pass keep=0.5 for half the channels of each group, macs=0.4 for a share of "
                "the work, or bytes=100_000 for a size.",
            )
        if self.bytes is not None:
            checks.count("bytes", self.bytes)
            return
        ((name, value),) = given.items()
        checks.positive(name, checks.fraction(name, value))

    def after(self, share: float, first: Plan) -> Amount:
        """Return what is to be left after a share of the way, from what there was at first."""
        if self.bytes is None:
            return Amount(
                keep=None if self.keep is None else self.keep**share,
                macs=None if self.macs is None else self.macs**share,
            )
        if share == 1 or self.bytes >= first.bytes:
            return self
        return Amount(bytes=math.ceil(first.bytes * (self.bytes / first.bytes) ** share))


@dataclasses.dataclass(frozen=True)
class Worth:
    """By what channels are ranked: the arguments of `prune_channels` that say it.

    Raises:
        ValueError: "There is no importance …", "… needs data".
    """

    importance: str
    data: Any
    loss: Any
    batch_size: int
    examples: int

    def __post_init__(self) -> None:
        """Refuse what cannot be ranked by."""
        if self.importance not in IMPORTANCE:
            raise checks.unknown_name("importance", self.importance, IMPORTANCE)
        checks.count("batch_size", self.batch_size)
        checks.count("examples", self.examples)
        if self.importance == "taylor" and self.data is None:
            raise checks.bad_value(
                'importance="taylor" needs data.',
                given="data=None",
                expected="labelled batches, or arrays (x, y)",
                fix='pass data=train_ds, or importance="magnitude", which needs none.',
            )

    def scores(self, plan: Plan) -> np.ndarray:
        """Return what each unit of the plan's network is worth."""
        if self.importance == "magnitude":
            return importance.magnitude(plan.channels)
        if self.importance == "batchnorm":
            return importance.batch_norm(plan.channels)
        return importance.taylor(
            plan.network, plan.channels, self.data, plan.loss, self.batch_size, self.examples
        )


class Plan:
    """A copy of a network, and what was found out about its channels.

    Args:
        student: the model; it is read, and not changed.
        worth: by what its channels are ranked.
        multiple_of: multiples of so many channels are kept.
    """

    def __init__(self, student: keras.Model, worth: Worth, multiple_of: int) -> None:
        networks.check(student)
        self.worth = worth
        self.multiple_of = checks.count("multiple_of", multiple_of)
        self.loss = worth.loss
        if self.loss is None and student.compiled:
            self.loss = student.loss
        self.network = rebuilding.copied(student)
        self.channels = tracing.trace(self.network)
        if not self.channels.groups:
            raise _nothing_to_remove(student, self.channels.whole)

    @property
    def bytes(self) -> int:
        """The size of all weights in float32."""
        return costs.BYTES * self.network.count_params()

    @property
    def macs(self) -> int:
        """The multiply-accumulates of one example."""
        return self._total(costs.require_macs(self.channels), self._all)

    def kept(self, amount: Amount, first: Plan | None = None) -> np.ndarray:
        """Say of each unit whether it is kept; `first` is what the shares are of."""
        first = first or self
        if amount.keep is not None:
            wide = {group.makers: len(group.units) for group in first.channels.groups}

            def count(group: Group) -> int:
                of = wide.get(group.makers, len(group.units))
                return choosing.width(of, amount.keep or 1.0, self.multiple_of)

            return choosing.by_share(self.channels, self.worth.scores(self), count)
        if amount.macs is not None:
            terms, scale, limit = costs.require_macs(self.channels), 1, amount.macs * first.macs
        else:
            terms, scale = costs.parameters_of(self.channels), costs.BYTES
            limit = float(amount.bytes or 0)
        kept = choosing.by_budget(
            self.channels,
            self.worth.scores(self),
            lambda kept: scale * self._total(terms, kept) <= limit,
            self.multiple_of,
            between=self.worth.importance == "taylor",
        )
        left = scale * self._total(terms, kept)
        if left > limit:
            raise _out_of_reach(amount, left, first)
        return kept

    def apply(self, amount: Amount, first: Plan | None = None) -> keras.Model:
        """Build the network that is left."""
        return rebuilding.cut(self.network, self.channels, self.kept(amount, first))

    @property
    def _all(self) -> np.ndarray:
        return np.ones(self.channels.units, bool)

    def _total(self, terms: list, kept: np.ndarray) -> int:
        return costs.total(self.channels, terms, kept) or 0


def _nothing_to_remove(student: keras.Model, whole: dict[str, str]) -> ValueError:
    reasons = [f"{path}: {why}" for path, why in whole.items()]
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return checks.bad_value(
        f"No channel of {student.name!r} can be removed.",
        given="; ".join(reasons[:3]) + more or "no layer that makes channels",
        expected="a layer whose channels are read by layers that can be followed",
        fix="the channels of inputs and outputs are kept, and those that unknown layers take: put "
        "Dense or convolutions between them.",
    )


def _out_of_reach(amount: Amount, left: int, first: Plan) -> ValueError:
    if amount.bytes is not None:
        least, asked = f"bytes={left}", f"bytes={amount.bytes}"
    else:
        least, asked = f"macs={left / first.macs:.4g}", f"macs={amount.macs}"
    return checks.bad_value(
        "The budget cannot be reached by removing channels.",
        given=asked,
        expected=f"{least} or more: what is left with a tenth of each group",
        fix="ask for less, or build a smaller network and distil into it.",
    )
