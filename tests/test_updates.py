"""Applying gradients in one compiled pass gives what the optimizer gives by itself."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import updates

SHAPES = ((128, 160), (160,))  # two weights, 10,320 numbers on average: more than LARGE


def optimizers() -> dict[str, keras.optimizers.Optimizer]:
    return {
        "adam": keras.optimizers.Adam(1e-2),
        "adamw": keras.optimizers.AdamW(1e-2, weight_decay=0.1),
        "clipped": keras.optimizers.Adam(1e-2, global_clipnorm=0.5),
        "averaged": keras.optimizers.SGD(1e-2, momentum=0.9, use_ema=True, ema_momentum=0.5),
        "falling": keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 3)),
        "collecting": keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2),
        "scaled": keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)),
    }


def weights_after(optimizer, shapes=SHAPES, *, fused: bool, gradients=None) -> list[np.ndarray]:
    """Update three times in a graph, and return the weights and the optimizer's own numbers."""
    rng = np.random.default_rng(0)
    weights = [keras.Variable(rng.normal(size=shape).astype("float32")) for shape in shapes]
    steps = [[rng.normal(size=shape).astype("float32") for shape in shapes] for _ in range(3)]
    optimizer.build(weights)

    @tf.function(autograph=False)
    def step(*gradients):
        if fused:
            updates.apply(optimizer, gradients, weights)
        else:
            optimizer.apply_gradients(zip(gradients, weights, strict=True))

    for made in steps:
        step(*[tf.constant(gradient) for gradient in made])
    graph = step.get_concrete_function(*map(tf.constant, steps[0])).graph.as_graph_def()
    compiled = any(function.attr["_XlaMustCompile"].b for function in graph.library.function)
    assert compiled == (fused and sum(map(np.prod, shapes)) >= updates.LARGE * len(shapes))
    return [np.asarray(value) for value in (*weights, *optimizer.variables)]


@pytest.mark.parametrize("name", optimizers())
def test_one_pass_gives_the_optimizers_own_numbers(name) -> None:
    fused = weights_after(optimizers()[name], fused=True)
    plain = weights_after(optimizers()[name], fused=False)
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


SMALL = ((8, 8), (8,), (4, 2))


def every_optimizer() -> dict[str, keras.optimizers.Optimizer]:
    """Make Keras's optimizers, each with its defaults, and those of this file."""
    kinds = ("Adadelta", "Adafactor", "Adagrad", "Adamax", "Ftrl", "Lamb", "Lion", "Muon", "Nadam")
    by_name = {kind: getattr(keras.optimizers, kind)() for kind in (*kinds, "RMSprop", "SGD")}
    return by_name | optimizers()


@pytest.mark.parametrize("name", every_optimizer())
def test_small_weights_are_left_to_the_optimizer(name) -> None:
    ours = weights_after(every_optimizer()[name], SMALL, fused=True)
    theirs = weights_after(every_optimizer()[name], SMALL, fused=False)
    for own, others in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(own, others)


def readings(optimizer) -> tuple[int, int]:
    """Count how often an update of three weights reads the step's number and the learning rate."""
    weights = [keras.Variable(np.ones(shape, "float32")) for shape in SMALL]
    optimizer.build(weights)

    @tf.function(autograph=False)
    def step():
        updates.apply(optimizer, [tf.ones(shape) for shape in SMALL], weights)

    graph = step.get_concrete_function().graph
    read = [one.inputs[0] for one in graph.get_operations() if one.type == "ReadVariableOp"]
    numbers = optimizer.iterations, optimizer.learning_rate
    handles = [graph.capture(number.value.handle) for number in numbers]
    counts = tuple(sum(one is handle for one in read) for handle in handles)
    step()
    assert int(optimizer.iterations) == 1
    optimizer.learning_rate = 0.25
    assert float(optimizer.learning_rate) == 0.25  # nothing of the graph's is left behind
    return counts


def test_the_steps_number_and_the_learning_rate_are_read_once() -> None:
    assert readings(keras.optimizers.Adam()) == (1, 1)


class Falling(keras.optimizers.SGD):
    """Halves its learning rate with each weight, as no optimizer of Keras does."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        self._learning_rate.assign(self._learning_rate / 2)


def test_an_optimizer_of_somebody_elses_reads_as_it_likes() -> None:
    assert readings(Falling(1.0))[1] > 1
    ours, theirs = (weights_after(Falling(1.0), SMALL, fused=fused) for fused in (True, False))
    for own, others in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(own, others)


def test_a_failed_update_leaves_nothing_behind() -> None:
    weight = keras.Variable(np.ones(3, "float32"))
    optimizer = keras.optimizers.Adam()
    optimizer.build([weight])

    @tf.function(autograph=False)
    def step():
        updates.apply(optimizer, [tf.ones(3)], [keras.Variable(np.ones(3, "float32"))])

    with pytest.raises(ValueError, match="Unknown variable"):
        step()
    assert int(optimizer.iterations + 1) == 1
    updates.apply(optimizer, [tf.ones(3)], [weight])
    assert int(optimizer.iterations) == 1


def test_sparse_gradients_and_none_are_left_to_the_optimizer() -> None:
    table = keras.Variable(np.ones((1 << 14, 2), "float32"))
    idle = keras.Variable(np.ones((2,), "float32"))
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build([table, idle])

    @tf.function(autograph=False)
    def step(rows):
        slices = tf.IndexedSlices(tf.ones((2, 2)), rows, dense_shape=(1 << 14, 2))
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            updates.apply(optimizer, [slices, None], [table, idle])

    step(tf.constant([0, 3]))
    assert np.asarray(table)[:5, 0].tolist() == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert np.asarray(idle).tolist() == [1.0, 1.0]
