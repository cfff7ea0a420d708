"""Soft targets as a Distiller uses them: a teacher whose answers come with the batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks
from keras_kd.attached import Answer, as_given
from keras_kd.soft_batch import SoftBatch
from keras_kd.soft_targets.layout import Leaf, TopK
from keras_kd.soft_targets.store import Store
from keras_kd.top_k import TopKLogits


class AttachedTargets:
    """The stored answers of one teacher, where a Distiller expects a model that it asks.

    Args:
        store: the store, for what its rows hold.
        paths: the teacher's layers that the losses name.

    Raises:
        ValueError: "There is no stored layer …".
    """

    def __init__(self, store: Store, paths: Iterable[str]) -> None:
        self._layout = store.layout
        self._store = store.number
        self._said = store.manifest["build"]["answer"]
        self._directory = store.directory
        for path in paths:
            if path not in self._layout.layers:
                raise self._no_layer(path)

    def __call__(self, batch: Any) -> Answer:
        """Read the answer that came with the batch.

        Raises:
            ValueError: "The batches carry no soft targets", "… the soft targets of another store".
        """
        if not isinstance(batch, SoftBatch):
            raise checks.bad_value(
                "The batches carry no soft targets, and there is no other teacher.",
                given=f"plain inputs, and the soft targets of {self._directory}",
                expected="batches of kd.SoftBatch",
                fix="fit on soft_targets.attach(data).",
            )
        if not _alike(batch.teacher, self.batch_of(None).teacher):
            raise self._of_another_store()
        stored = batch.teacher["outputs"]
        leaves = [
            _in_log_space(leaf, part)
            for leaf, part in zip(
                self._layout.outputs, stored if self._layout.several else [stored], strict=True
            )
        ]
        own = [
            leaf if isinstance(leaf, TopKLogits) else as_given(leaf, kind)
            for leaf, kind in zip(leaves, self.kinds, strict=True)
        ]
        layers = {
            path: keras.ops.cast(layer, "float32")
            for path, layer in batch.teacher["layers"].items()
        }
        pack, structure = keras.tree.pack_sequence_as, self._said["structure"]
        raw = [batch.teacher["store"]]
        return Answer(
            pack(structure, leaves), pack(structure, own), layers, raw, self._said["names"]
        )

    def batch_of(self, inputs: Any) -> SoftBatch:
        """Return what `fit` gets in the place of x for these inputs (or their specs)."""
        store = tf.TensorSpec((None,), tf.int64)
        return SoftBatch(inputs, {**self._layout.specs(), "store": store})

    def compile(self, inputs: Any, spec: Any) -> None:
        """Compile nothing: no model is asked."""

    def learn(self, raw: list) -> None:
        """Look whose answers a first batch carries; their values were checked when stored.

        Raises:
            ValueError: "The batches carry the soft targets of another store".
        """
        if np.any(np.asarray(raw[0]) != self._store):
            raise self._of_another_store()

    def _no_layer(self, path: str) -> ValueError:
        known = list(self._layout.layers)
        if checks.closest(path, known):
            return checks.unknown_name("stored layer", path, known)
        return checks.bad_value(
            f"There is no stored layer {path!r}.",
            given=repr(path),
            expected=", ".join(known) or "no loss on the teacher's layers: none were stored",
            fix=f"store it: kd.SoftTargets.build(…, layers=[{path!r}]) into another folder.",
        )

    def _of_another_store(self) -> ValueError:
        return checks.bad_value(
            "The batches carry the soft targets of another store.",
            given=f"other answers than those of {self._directory}",
            expected="the data set that the Distiller's own soft targets were attached to",
            fix="fit on soft_targets.attach(data), with the soft_targets of the Distiller.",
        )

    @property
    def kinds(self) -> list[str]:
        """What each output is: `"logits"`, `"softmax"`, `"sigmoid"` or `"values"`."""
        return self._said["kinds"]

    def presumed(self, count: int) -> list[str]:
        """What each of `count` outputs is."""
        return self.kinds


def _alike(batch: Any, specs: Any) -> bool:
    """Say whether a batch holds what the specs say: the same parts, of the same shapes."""
    if not isinstance(batch, dict) or set(batch) != set(specs):
        return False
    parts, expected = tf.nest.flatten(batch), tf.nest.flatten(specs)
    return len(parts) == len(expected) and all(
        spec.shape.is_compatible_with(part.shape)
        for part, spec in zip(parts, expected, strict=True)
    )


def _in_log_space(leaf: Leaf, stored: Any) -> Any:
    if isinstance(leaf, TopK):
        return TopKLogits(**stored, temperatures=leaf.temperatures, count=leaf.shape[-1])
    return keras.ops.cast(stored, "float32")
