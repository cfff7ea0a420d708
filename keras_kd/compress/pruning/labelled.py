"""Labelled batches, and the loss that their labels call for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks, tasks
from keras_kd.outputs import OutputReader, as_numbers
from keras_kd.soft_batch import inputs_of


def batches(data: Any, batch_size: int, examples: int) -> Iterator[tuple[Any, Any, Any]]:
    """Give `(x, y, sample_weight)` of tensors until so many examples were seen.

    Args:
        data: a batched `tf.data.Dataset`, a `PyDataset`, or arrays `(x, y[, sample_weight])`.
        batch_size: for arrays.
        examples: how many; whole batches are given, the last may go over.

    Raises:
        ValueError: "Labels are needed", "There is no data".
    """
    dataset, seen = data, 0
    if isinstance(data, (tuple, list)):
        dataset = tf.data.Dataset.from_tensor_slices(tuple(data)).batch(batch_size)
    elif isinstance(data, keras.utils.PyDataset):
        dataset = (data[index] for index in range(data.num_batches or examples))
    for batch in dataset:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None:
            raise checks.bad_value(
                "Labels are needed to find out what each channel is worth.",
                given="batches without labels",
                expected="batches (x, y) or (x, y, sample_weight)",
                fix='give labelled data, or use importance="magnitude".',
            )
        parts = (inputs_of(x), y, weight)
        yield keras.tree.map_structure(_tensor, parts)
        seen += int(keras.tree.flatten(y)[0].shape[0])
        if seen >= examples:
            return
    if not seen:
        raise checks.bad_value(
            "There is no data to find out by what each channel is worth.",
            given="a data set without a single batch",
            expected="one labelled batch or more",
            fix='check the split, or use importance="magnitude", which needs no data.',
        )


def loss_for(network: keras.Model, x: Any, y: Any, sample_weight: Any) -> Any:
    """Return the loss that a first batch's labels call for, one for each output.

    Class numbers and one-hot rows call for a cross-entropy, zeros and ones for each output for a
    binary one, other numbers for the squared error. Whether an output is logits or probabilities
    is found out as for a teacher.

    Raises:
        ValueError: "The labels of … do not fit", "… may be probabilities or logits".
    """
    raw = network(x, training=False)
    leaves = [as_numbers(leaf) for leaf in keras.tree.flatten(raw)]
    fix = "say by which loss: pass loss=keras.losses.…, or compile the model with it."
    reader = OutputReader(network, f"{network.name!r}", "auto", "softmax", fix)
    reader.learn(raw)
    names = _names(network, raw, len(leaves))
    labels = tasks.name_labels(y, names)
    shapes = [leaf.shape if leaf.ndim > 1 else (*leaf.shape, 1) for leaf in leaves]
    kinds = reader.kinds or []
    weights = tasks.weigh(shapes, sample_weight, [])
    found = tasks.find_tasks(labels, shapes, kinds, names, weights)
    losses = [
        _loss(task.kind, kind, label, shape)
        for task, kind, label, shape in zip(found, kinds, labels, shapes, strict=True)
    ]
    return keras.tree.pack_sequence_as(raw, losses)


def _tensor(leaf: Any) -> Any:
    return None if leaf is None else tf.convert_to_tensor(leaf)


def _names(network: keras.Model, raw: Any, count: int) -> Sequence[str]:
    return sorted(raw) if isinstance(raw, dict) else network.output_names[:count]


def _loss(task: str, kind: str, label: np.ndarray, shape: tuple[int, ...]) -> keras.losses.Loss:
    logits = kind == "logits"
    if task == "regression":
        return keras.losses.MeanSquaredError()
    if task == "binary":
        return keras.losses.BinaryCrossentropy(from_logits=logits)
    if label.shape == shape:
        return keras.losses.CategoricalCrossentropy(from_logits=logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
