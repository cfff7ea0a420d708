"""Fake quantisation, ranges and folding against float64 NumPy and what must hold of them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.compress.folding import FoldedNormalization
from keras_kd.compress.quantizers import (
    ActivationRange,
    FixedRange,
    calibrating,
    fake_quantized,
    rounded_bias,
    rounded_weights,
)


def nudged(low: float, high: float, steps: tuple[int, int]) -> tuple[float, float, float]:
    """Return the ends moved so that 0 lies on the grid, and the scale.

    After TensorFlow's documentation of `fake_quant_with_min_max_vars` and Jacob et al. 2018,
    section 3.2 (the zero point is rounded).
    """
    first, last = steps
    scale = (high - low) / (last - first)
    zero = np.clip(np.floor(first - low / scale + 0.5), first, last)
    return (first - zero) * scale, (last - zero) * scale, scale


def on_grid(x: np.ndarray, low: float, high: float, steps: tuple[int, int]) -> np.ndarray:
    low, high, scale = nudged(low, high, steps)
    x = np.clip(x.astype("float64"), low, high)
    return np.floor((x - low) / scale + 0.5) * scale + low


@pytest.mark.parametrize("ends", [(-1.0, 1.1), (0.0, 6.0), (-0.3, 5.1), (-7.0, 0.0)])
def test_rounding_is_the_transcription(ends, rng) -> None:
    x = rng.uniform(-8, 8, 500).astype("float32")
    expected = on_grid(x, *ends, (0, 255))
    np.testing.assert_allclose(fake_quantized(x, *ends), expected, atol=2e-5)


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (-0.3, 5.1), (-2.77, 0.01)])
def test_zero_is_on_every_grid(ends) -> None:
    """Padding is with 0: were 0 not on the grid, every border would be wrong."""
    assert fake_quantized(np.zeros(1, "float32"), *ends).numpy()[0] == 0.0


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_rounded_for_each_channel_symmetrically(bits, rng) -> None:
    kernel = rng.normal(size=(3, 3, 2, 5)).astype("float32") * [1, 0.1, 3, 0.02, 1]
    kernel = kernel.astype("float32")
    rounded, step = map(np.asarray, rounded_weights(kernel, bits, per_channel=True))
    top = 2 ** (bits - 1) - 1  # 127 or 7: the lowest step is left out
    scale = np.abs(kernel).max(axis=(0, 1, 2)).astype("float64") / top
    np.testing.assert_allclose(step, scale, rtol=1e-6)
    np.testing.assert_allclose(rounded / scale, np.round(kernel / scale), atol=1e-3)
    assert np.abs(np.round(rounded / scale)).max() == top


@pytest.mark.parametrize("bits", [8, 4])
def test_dense_weights_share_one_grid(bits, rng) -> None:
    kernel = rng.normal(size=(6, 4)).astype("float32")
    scale = np.abs(kernel).max() / (2 ** (bits - 1) - 1)
    rounded = rounded_weights(kernel, bits, per_channel=False)[0].numpy()
    np.testing.assert_allclose(rounded / scale, np.round(kernel / scale), atol=1e-3)


def test_a_dead_channel_gets_no_grid_of_its_own() -> None:
    """Its scale would make a bias overflow 32 bits; its weights become 0."""
    kernel = np.array([[1.0, 1e-7, 0.0]], "float32")
    rounded, step = rounded_weights(kernel, 8, per_channel=True)
    np.testing.assert_allclose(rounded, [[1, 0, 0]])
    np.testing.assert_allclose(step, np.array([1, 1e-4, 1e-4]) / 127, rtol=1e-5)
    rounded, step = rounded_weights(np.zeros((2, 3), "float32"), 8, per_channel=True)
    assert not rounded.numpy().any() and (step.numpy() > 0).all()


def test_gradients_pass_the_rounding_and_stop_at_the_ends() -> None:
    x, low, high = map(tf.constant, ([-2.0, -0.5, 0.4, 3.0, 5.0], -1.0, 1.0))
    upstream = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0])
    with tf.GradientTape() as tape:
        tape.watch([x, low, high])
        total = tf.reduce_sum(upstream * fake_quantized(x, low, high))
    gradients = tape.gradient(total, [x, low, high])
    assert gradients[0].numpy().tolist() == [0, 2, 3, 0, 0]
    assert [float(g) for g in gradients[1:]] == [1.0, 9.0]  # what each end clips (PACT)


def test_weights_get_their_whole_gradient(rng) -> None:
    kernel = tf.constant(rng.normal(size=(3, 4)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        total = tf.reduce_sum(rounded_weights(kernel, 4, per_channel=True)[0])
    np.testing.assert_array_equal(tape.gradient(total, kernel), np.ones((3, 4)))


def test_a_bias_is_rounded_as_whole_numbers_stand_for_it(rng) -> None:
    """Jacob et al. 2018, equation 11: its scale is that of the input times that of the weights."""
    bias = rng.normal(size=4).astype("float32")
    step = np.array([0.01, 0.3, 1.0, 0.0], "float32")  # 0: the input's is not known yet
    expected = np.where(step > 0, np.round(bias / np.maximum(step, 1e-9)) * step, bias)
    np.testing.assert_allclose(rounded_bias(bias, step), expected, atol=1e-6)
    with tf.GradientTape() as tape:
        tape.watch(given := tf.constant(bias))
        total = tf.reduce_sum(rounded_bias(given, step))
    np.testing.assert_array_equal(tape.gradient(total, given), np.ones(4))


def test_headroom_puts_the_zero_of_a_symmetric_range_on_its_grid() -> None:
    """−1…1 has its 0 between two steps; −1…128/127 is −127…128 steps of 1/127."""
    layer = ActivationRange(headroom=128 / 127)
    x = np.arange(-127, 128).astype("float32") / 127
    for _ in range(2):
        rounded, step = layer(x, training=True)
    np.testing.assert_allclose(rounded, x, atol=1e-6)
    np.testing.assert_allclose(step, 1 / 127, rtol=1e-6)
    positive = ActivationRange(headroom=128 / 127)
    positive(np.abs(x), training=True)
    assert ends_of(positive) == [0.0, 1.0]


def ends_of(layer: ActivationRange) -> list[float]:
    return [float(end) for end in layer.ends()]


def test_a_range_is_the_mean_of_the_first_batches_then_a_moving_average(rng) -> None:
    layer = ActivationRange(momentum=0.75)
    batches = rng.normal(size=(9, 20)).astype("float32") * np.arange(1, 10)[:, None]
    low, high = 0.0, 0.0
    for number, batch in enumerate(batches.astype("float32")):
        layer(batch, training=True)
        rate = max(0.25, 1 / (number + 1))
        low, high = low + rate * (batch.min() - low), high + rate * (batch.max() - high)
        np.testing.assert_allclose(ends_of(layer), [low, high], rtol=1e-5)


def test_zero_lies_in_every_range() -> None:
    layer = ActivationRange()
    layer(np.array([2.0, 3.0], "float32"), training=True)
    assert ends_of(layer) == [0.0, 3.0]


def test_inference_moves_nothing_and_rounds_only_what_is_known(rng) -> None:
    layer, x = ActivationRange(), rng.normal(size=20).astype("float32")
    np.testing.assert_array_equal(layer(x, training=False)[0], x)
    layer(x, training=True)
    before = [v.numpy() for v in layer.variables]
    rounded, step = layer(10 * x, training=False)
    np.testing.assert_allclose(step, (x.max() - x.min()) / 255, rtol=1e-5)
    np.testing.assert_allclose(rounded, on_grid(10 * x, x.min(), x.max(), (0, 255)), atol=2e-5)
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_the_warm_up_watches_and_does_not_round(rng) -> None:
    layer, x = ActivationRange(warm_up_steps=2), rng.normal(size=20).astype("float32")
    for rounds in (False, False, True):
        assert (np.abs(layer(x, training=True)[0] - x).max() > 0) == rounds
    np.testing.assert_allclose(ends_of(layer), [x.min(), x.max()], rtol=1e-6)


@pytest.mark.parametrize("learned", [False, True])
def test_a_frozen_range_stands_still(learned, rng) -> None:
    layer, x = ActivationRange(freeze_after=2, learned=learned), rng.normal(size=(4, 20))
    x = x.astype("float32")
    for batch in x[:2]:
        layer(batch, training=True)
    before = ends_of(layer)
    layer(9 * x[2], training=True)
    if learned:
        layer.maximum.assign([77.0])  # as an optimizer's momentum would
    layer(9 * x[3], training=True)
    assert ends_of(layer) == before


def test_learned_ends_stay_after_the_warm_up_but_for_their_gradients(rng) -> None:
    layer, x = ActivationRange(learned=True, warm_up_steps=1), rng.normal(size=20)
    x = x.astype("float32")
    assert not ActivationRange().trainable_variables
    layer(x, training=True)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(2 * x, training=True)[0])
    gradients = tape.gradient(total, [layer.minimum.value, layer.maximum.value])
    np.testing.assert_allclose(ends_of(layer), [x.min(), x.max()], rtol=1e-6)
    low, high, _ = nudged(x.min(), x.max(), (0, 255))
    clipped = [(2 * x < low).sum(), (2 * x > high).sum()]
    assert [float(g[0]) for g in gradients] == clipped and min(clipped) > 0


def test_sites_share_the_range_that_spans_them(rng) -> None:
    layer = ActivationRange(sites=2)
    for _ in range(3):
        layer(np.array([-1.0, 2.0], "float32"), site=0, training=True)
        layer(np.array([-3.0, 1.0], "float32"), site=1, training=True)
        layer(np.array([-99.0, 99.0], "float32"), site=None, training=True)
    assert ends_of(layer) == [-3.0, 2.0]
    assert int(layer.steps) == 3  # a step of training is one step, however many sites


def test_calibrating_watches_in_inference_and_passes_values_on(rng) -> None:
    layer, fixed = ActivationRange(), FixedRange(0.0, 255 / 256)
    x = rng.uniform(0, 1, 20).astype("float32")
    with calibrating([layer, fixed]):
        np.testing.assert_array_equal(fixed(layer(x, training=False)[0])[0], x)
    assert ends_of(layer) == [0.0, float(x.max())]
    assert not np.array_equal(fixed(x)[0], x)


def test_kernels_that_prescribe_their_grid_get_it(rng) -> None:
    x = rng.uniform(-1, 1, 300).astype("float32")
    rounded, step = FixedRange(-1.0, 127 / 128)(x)
    assert float(step) == 1 / 128
    steps = rounded.numpy() * 128
    np.testing.assert_array_equal(steps, np.round(steps))
    assert steps.min() >= -128 and steps.max() <= 127


def folded_norm(rng, **kwargs) -> tuple[FoldedNormalization, dict[str, np.ndarray]]:
    norm = FoldedNormalization(momentum=0.9, epsilon=1e-3, **kwargs)
    norm.build((None, 4))
    values = {
        "gamma": np.array([1.5, -0.5, 2.0, 0.3]),
        "beta": rng.normal(size=4),
        "moving_mean": rng.normal(size=4),
        "moving_variance": rng.uniform(0.5, 2, 4),
    }
    for name, value in values.items():
        getattr(norm, name).assign(value)
    return norm, values


def test_folding_is_the_normalisation(rng) -> None:
    """z·γ/σ + b·γ/σ + β − μ·γ/σ, Jacob et al. 2018, equation 14 with the bias of the layer."""
    norm, v = folded_norm(rng)
    z, bias = rng.normal(size=(20, 4)), rng.normal(size=4)
    deviation = np.sqrt(v["moving_variance"] + 1e-3)
    np.testing.assert_allclose(norm.factor(), v["gamma"] / deviation, rtol=1e-5)
    u = (z * v["gamma"] / deviation).astype("float32")
    expected = (z + bias - v["moving_mean"]) / deviation * v["gamma"] + v["beta"]
    answer = norm.finished(u, bias.astype("float32"), 0.0, training=False)
    np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_training_puts_the_statistics_of_the_batch_back(rng) -> None:
    norm, v = folded_norm(rng)
    z, bias = rng.normal(1.0, 2.0, size=(50, 4)), rng.normal(size=4)
    u = (z * v["gamma"] / np.sqrt(v["moving_variance"] + 1e-3)).astype("float32")
    mean, variance = (z + bias).mean(0), z.var(0)
    expected = (z + bias - mean) / np.sqrt(variance + 1e-3) * v["gamma"] + v["beta"]
    answer = norm.finished(u, bias.astype("float32"), 0.0, training=True)
    np.testing.assert_allclose(answer, expected, atol=2e-4)
    for name, batch in (("moving_mean", mean), ("moving_variance", variance)):
        np.testing.assert_allclose(getattr(norm, name), 0.9 * v[name] + 0.1 * batch, rtol=1e-4)


def test_frozen_statistics_are_used_and_stand_still(rng) -> None:
    norm, v = folded_norm(rng, freeze_after=1)
    u = rng.normal(size=(20, 4)).astype("float32")
    norm.finished(u, 0.0, 0.0, training=True)
    before = norm.moving_mean.numpy()
    assert not np.allclose(before, v["moving_mean"])
    answer = norm.finished(u, 0.0, 0.0, training=True)
    np.testing.assert_allclose(answer, norm.finished(u, 0.0, 0.0, training=False), atol=1e-6)
    np.testing.assert_array_equal(norm.moving_mean, before)


@pytest.mark.parametrize("why", ["not trainable", "dead channel"])
def test_what_must_not_move_does_not(why, rng) -> None:
    norm, v = folded_norm(rng)
    u = rng.normal(size=(20, 4)).astype("float32")
    if why == "not trainable":
        norm.trainable = False
        np.testing.assert_allclose(
            norm.finished(u, 0.0, 0.0, training=True), norm.finished(u, 0.0, 0.0, training=False)
        )
    u[:, 1] = 0.0
    answer = norm.finished(u, 0.0, 0.0, training=True).numpy()
    assert np.isfinite(answer).all()
    moved = ~np.isclose(norm.moving_variance, v["moving_variance"])
    assert moved.tolist() == ([False] * 4 if why == "not trainable" else [True, False, True, True])


def test_ranges_are_the_mean_over_replicas(rng) -> None:
    x = rng.uniform(0, 1, (2, 20)).astype("float32")
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        layer = ActivationRange()
        layer.build((None,))
    shares = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(x[context.replica_id_in_sync_group])
    )
    strategy.run(lambda share: layer(share, training=True), args=(shares,))
    np.testing.assert_allclose(ends_of(layer)[1], x.max(axis=1).mean(), rtol=1e-6)
    assert int(keras.ops.convert_to_numpy(layer.steps)) == 1
