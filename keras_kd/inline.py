"""Map data sets by functions of few small operations: quick to begin, and quick for each element.

`tf.data.Dataset.map` hands such a function to a pool of threads, which takes several times as long
as its operations do, and TensorFlow optimizes it anew for each iterator, which takes milliseconds.
These two do neither: what they are given runs as it is written, in the thread that asks for an
element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops.dataset_ops import UnaryDataset

_ON_ONE_DEVICE = {"experimental_ints_on_device": True}
"""Tells tf.data to run a function on the CPU alone, as it is (`CapturedFunctionMetadata`, 2.21).

A TensorFlow that does not know the attribute runs the same function, and is slower to begin.
"""


def mapped(source: tf.data.Dataset, function: Callable[..., Any]) -> tf.data.Dataset:
    """Do what `source.map(function)` does, for few small operations and without AutoGraph.

    Args:
        source: what gives the elements.
        function: from an element to a structure of tensors.
    """
    if not _of_tensors(source):
        return source.map(tf.autograph.experimental.do_not_convert(function))
    return _Mapped(source, function)


def flat_mapped(
    source: tf.data.Dataset, function: Callable[..., tf.data.Dataset]
) -> tf.data.Dataset:
    """Do what `source.flat_map(function)` does, for few small operations and without AutoGraph.

    Args:
        source: what gives the elements; they are of dense tensors.
        function: from an element to a data set.
    """
    return _FlatMapped(source, function)


def _of_tensors(source: tf.data.Dataset) -> bool:
    return all(isinstance(leaf, tf.TensorSpec) for leaf in tf.nest.flatten(source.element_spec))


class _Traced:
    """A function of elements as one of their leaves, without the marks that tf.data's own have.

    By these it would look for data sets in the function, and stumble over its int32 results.
    """

    def __init__(self, spec: Any, function: Callable[..., Any]) -> None:
        self.spec: Any = None

        def flat(*leaves: tf.Tensor) -> list[tf.Tensor]:
            element = tf.nest.pack_sequence_as(spec, leaves)
            result = function(*element) if type(element) is tuple else function(element)
            if isinstance(result, tf.data.Dataset):
                self.spec = result.element_spec
                return [result._variant_tensor]
            result = tf.nest.map_structure(tf.convert_to_tensor, result)
            self.spec = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), result)
            return tf.nest.flatten(result)

        self.function = tf.function(
            flat,
            input_signature=tf.nest.flatten(spec),
            autograph=False,
            experimental_attributes=_ON_ONE_DEVICE,
        ).get_concrete_function()
        if not tf.executing_eagerly():
            self.function.add_to_graph(tf.compat.v1.get_default_graph())


class _Inline(UnaryDataset):
    def __init__(self, source: tf.data.Dataset, function: Callable[..., Any]) -> None:
        self._input_dataset, self._name = source, None
        self._traced = _Traced(source.element_spec, function)
        given = {
            "input_dataset": source._variant_tensor,
            "other_arguments": self._traced.function.captured_inputs,
            "f": self._traced.function,
        }
        super().__init__(source, self._variant(given | self._common_args))

    @property
    def element_spec(self) -> Any:
        return self._traced.spec

    def _functions(self) -> list[_Traced]:
        return [self._traced]


class _Mapped(_Inline):
    def _variant(self, given: dict[str, Any]) -> tf.Tensor:
        inline = {"use_inter_op_parallelism": False, "force_synchronous": True}
        return tf.raw_ops.MapDataset(**given, **inline, preserve_cardinality=True)


class _FlatMapped(_Inline):
    def _variant(self, given: dict[str, Any]) -> tf.Tensor:
        return tf.raw_ops.FlatMapDataset(**given)
