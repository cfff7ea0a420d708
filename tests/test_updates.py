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


def test_small_weights_are_left_to_the_optimizer() -> None:
    weights_after(keras.optimizers.Adam(), [(8, 8), (8,)], fused=True)


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
