"""Squared error on some of several outputs: what a regression output learns from its teacher."""

from __future__ import annotations

from typing import Any

import keras

from keras_kd.losses import LogitMatching


class ValueMatching(LogitMatching):
    """Match the chosen outputs by half their squared distance, and leave the others out.

    Args:
        chosen: True or False for each output, nested as the outputs are.
    """

    def __init__(self, chosen: Any) -> None:
        super().__init__(name="value_matching")
        self.chosen = chosen

    def terms(self) -> Any:
        """Return the squared distance for the chosen outputs, `None` for the others."""
        return keras.tree.map_structure(
            lambda chosen: self.per_example if chosen else None, self.chosen
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"chosen": self.chosen}
