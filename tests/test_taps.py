"""Taps: one pass, any kind of model, nothing left behind, and the errors' words."""

from __future__ import annotations

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_kd.taps import TappedModel, call_model, find_layer, layer_paths


class Block(layers.Layer):
    """A subclass with layers inside, as people write them."""

    def __init__(self, width: int, name: str) -> None:
        super().__init__(name=name)
        self.first = layers.Dense(width, activation="relu", name="first")
        self.second = layers.Dense(width, name="second")

    def build(self, shape) -> None:
        self.first.build(shape)
        self.second.build((*shape[:-1], self.first.units))

    def call(self, x):
        return self.second(self.first(x))


class Subclassed(keras.Model):
    """Layers in attributes and in a list; no `training` argument."""

    def __init__(self, dense=layers.Dense, head=layers.Dense) -> None:
        super().__init__(name="subclassed")
        self.block = Block(5, "block")
        self.many = [dense(4, name=f"dense{k}") for k in range(2)]
        self.head = head(3, name="head")

    def build(self, shape) -> None:
        self.block.build(shape)
        self.many[0].build((*shape[:-1], 5))
        self.many[1].build((*shape[:-1], 4))
        self.head.build((*shape[:-1], 4))

    def call(self, x):
        return self.head(self.many[1](self.many[0](self.block(x))))


class MadeInBuild(keras.Model):
    """Its layers do not exist before it has seen a batch."""

    def build(self, shape) -> None:
        self.hidden = layers.Dense(5, name="hidden")
        self.hidden.build(shape)

    def call(self, x):
        return self.hidden(x)


def functional() -> keras.Model:
    inputs = keras.Input((4,))
    hidden = layers.Dense(5, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="head")(hidden), name="functional")


def sequential() -> keras.Model:
    parts = [layers.Dense(5, activation="relu", name="hidden"), layers.Dense(3, name="head")]
    return keras.Sequential([keras.Input((4,)), *parts], name="sequential")


def nested() -> keras.Model:
    inner_inputs = keras.Input((4,))
    relu = layers.Dense(5, activation="relu", name="relu")(inner_inputs)
    block = keras.Model(inner_inputs, layers.Dense(6, name="out")(relu), name="block3")
    middle_inputs = keras.Input((4,))
    backbone = keras.Model(middle_inputs, block(middle_inputs), name="backbone")
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(3, name="head")(backbone(inputs)), name="nested")


def mixed() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(3, name="head")(Block(5, "block")(inputs)))


def dense(model: keras.Model, path: str, x: np.ndarray, relu: bool = False) -> np.ndarray:
    kernel, bias = find_layer(model, path).get_weights()
    y = np.asarray(x) @ kernel + bias
    return np.maximum(y, 0) if relu else y


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(2, 4)).astype("float32")


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (functional, "hidden"),
        (sequential, "hidden"),
        (nested, "backbone/block3/relu"),
        (Subclassed, "block/first"),
        (mixed, "block/first"),
    ],
)
@pytest.mark.parametrize("graph", ["eager", "graph", "xla"])
def test_a_tap_hears_the_layer_wherever_it_lives(make, path, graph, x) -> None:
    model = make()
    model.build((None, 4))
    tapped = TappedModel(model, [path])
    call = tapped
    if graph != "eager":
        call = tf.function(lambda x: tapped(x), autograph=False, jit_compile=graph == "xla")
    outputs, features = call(x)
    np.testing.assert_allclose(features[path], dense(model, path, x, relu=True), atol=1e-5)
    np.testing.assert_allclose(outputs, model(x), atol=1e-5)


def test_paths_name_every_layer_outer_ones_first() -> None:
    assert layer_paths(functional()) == ["hidden", "head"]
    assert layer_paths(sequential()) == ["hidden", "head"]
    assert layer_paths(mixed()) == ["block", "block/first", "block/second", "head"]
    expected = [
        "backbone",
        "backbone/block3",
        "backbone/block3/relu",
        "backbone/block3/out",
        "head",
    ]
    assert layer_paths(nested()) == expected
    subclassed = ["block", "block/first", "block/second", "dense0", "dense1", "head"]
    assert layer_paths(Subclassed()) == subclassed


def test_a_layer_that_knows_its_parent_ends_the_walk() -> None:
    model = Subclassed()
    model.block.parent = model
    assert layer_paths(model) == [
        *("block", "block/first", "block/second", "dense0", "dense1", "head")
    ]


def test_several_taps_take_one_pass(x) -> None:
    calls = []

    class Counting(layers.Dense):
        def call(self, inputs, training=None):
            calls.append(self.name)
            return super().call(inputs, training=training)

    model = Subclassed(dense=Counting, head=Counting)
    model.build((None, 4))
    _, features = TappedModel(model, ["block", "dense0", "block/second", "dense0"])(x)
    assert calls == ["dense0", "dense1", "head"]
    assert list(features) == ["block", "dense0", "block/second"]
    np.testing.assert_array_equal(features["block"], features["block/second"])


def test_gradients_flow_through_taps(x) -> None:
    model = sequential()
    tapped = TappedModel(model, ["hidden"])
    with tf.GradientTape() as tape:
        _, features = tapped(x, training=True)
        loss = tf.reduce_sum(features["hidden"])
    kernel, bias, *head = tape.gradient(loss, model.trainable_weights)
    active = (dense(model, "hidden", x) > 0).astype("float32")
    np.testing.assert_allclose(kernel, x.T @ active, atol=1e-6)
    np.testing.assert_allclose(bias, active.sum(0), atol=1e-6)
    assert head == [None, None]


def test_training_is_passed_on(x) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5, name="drop")])
    tapped = TappedModel(model, ["drop"])
    ones = np.ones((50, 4), "float32")
    still, moving = tapped(ones)[1]["drop"], tapped(ones, training=True)[1]["drop"]
    np.testing.assert_array_equal(still, ones)
    assert set(np.unique(moving)) == {0.0, 2.0}


@pytest.mark.parametrize("graph", [False, True])
def test_layers_made_in_build_are_found_with_the_first_batch(graph, x) -> None:
    model = MadeInBuild()
    tapped = TappedModel(model, ["hidden"])
    call = tf.function(lambda x: tapped(x), autograph=False) if graph else tapped
    outputs, features = call(x)
    np.testing.assert_array_equal(outputs, features["hidden"])
    with pytest.raises(ValueError, match="did you mean 'hidden'"):
        TappedModel(MadeInBuild(), ["hiden"])(x)


def shared_twice() -> keras.Model:
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    return keras.Model(inputs, shared(shared(inputs)), name="twice")


def test_a_layer_called_twice_takes_the_number_of_the_call(x) -> None:
    model = shared_twice()
    _, features = TappedModel(model, ["shared#0", "shared#1"])(x)
    once = dense(model, "shared", x)
    np.testing.assert_allclose(features["shared#0"], once, atol=1e-5)
    np.testing.assert_allclose(features["shared#1"], dense(model, "shared", once), atol=1e-5)
    assert TappedModel(functional(), ["hidden#0"])(x)[1]["hidden#0"].shape == (2, 5)


def test_a_call_number_that_is_missing_or_wrong_is_refused(x) -> None:
    words = r"is called 2 times in one pass[\s\S]*shared#0, shared#1[\s\S]*shared#1 for the last"
    with pytest.raises(ValueError, match=words):
        TappedModel(shared_twice(), ["shared"])(x)
    for number in ("2", "-1", "one", "²"):
        words = rf"has no call number '{number}'[\s\S]*a number from 0 to 1"
        with pytest.raises(ValueError, match=words):
            TappedModel(shared_twice(), [f"shared#{number}"])(x)


def test_an_unknown_path_answers_with_the_closest_and_the_list() -> None:
    words = r"no layer in model 'nested' with the path 'relu'[\s\S]*backbone, backbone/block3"
    with pytest.raises(ValueError, match=words + r"[\s\S]*did you mean 'backbone/block3/relu'"):
        TappedModel(nested(), ["relu"])
    with pytest.raises(ValueError, match="did you mean 'hidden'"):
        TappedModel(functional(), ["hiden"])


def test_names_that_are_not_unique_are_refused() -> None:
    model = Subclassed()
    model.build((None, 4))
    model.many[1].name = "dense0"
    with pytest.raises(ValueError, match=r"Several layers in model 'subclassed'[\s\S]*2 layers"):
        TappedModel(model, ["dense0"])


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_cell_of_an_rnn_is_out_of_reach(graph, wrapped) -> None:
    inputs = keras.Input((5, 4))
    lstm = layers.LSTM(3, name="lstm")
    outer = layers.Bidirectional(lstm, name="both") if wrapped else lstm
    model = keras.Model(inputs, outer(inputs))
    (path,) = [path for path in layer_paths(model) if "cell" in path and "backward" not in path]

    def tap(x):
        return TappedModel(model, [path])(x)

    call = tf.function(tap, autograph=False) if graph else tap
    words = r"is not reachable from outside[\s\S]*the LSTM in place of its cell"
    with pytest.raises(ValueError, match=words):
        call(tf.ones((2, 5, 4)))


def test_the_cell_of_an_unrolled_rnn_is_called_once_a_step() -> None:
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, layers.SimpleRNN(2, unroll=True, name="rnn")(inputs))
    path = "rnn/simple_rnn_cell"
    (path,) = [path for path in layer_paths(model) if path.startswith("rnn/")]
    outputs, features = TappedModel(model, [f"{path}#2"])(tf.ones((1, 3, 4)))
    np.testing.assert_allclose(features[f"{path}#2"][0], outputs, atol=1e-6)


@pytest.mark.parametrize("graph", [False, True])
def test_a_tensor_inside_an_inner_tf_function_is_out_of_reach(graph, x) -> None:
    class Inner(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = layers.Dense(3, name="hidden")
            self.inside = tf.function(self.hidden, autograph=False)

        def build(self, shape) -> None:
            self.hidden.build(shape)

        def call(self, x):
            return self.inside(x)

    model = Inner()
    model.build((None, 4))
    tapped = TappedModel(model, ["hidden"])
    call = tf.function(lambda x: tapped(x), autograph=False) if graph else tapped
    with pytest.raises(ValueError, match="is not reachable from outside: it lives inside a loop"):
        call(tf.constant(x))
    assert "call" not in vars(model.hidden)


def test_a_layer_that_the_pass_does_not_run_is_refused(x) -> None:
    class Spare(Subclassed):
        def call(self, x):
            return self.head(self.many[0](self.block(x)))

    model = Spare()
    model.build((None, 4))
    with pytest.raises(ValueError, match="'dense1' in model 'subclassed' was not called"):
        TappedModel(model, ["dense1"])(x)


def test_nothing_is_left_behind(x) -> None:
    model = sequential()
    hidden = model.get_layer("hidden")
    before, attributes = model.get_config(), {**vars(hidden)}
    TappedModel(model, ["hidden"])(x)
    assert vars(hidden).keys() == attributes.keys()
    assert hidden.call.__func__ is layers.Dense.call
    assert model.get_config() == before


def test_nothing_is_left_behind_after_an_error(x) -> None:
    class Broken(layers.Dense):
        def call(self, x):
            raise RuntimeError("broken inside")

    model = Subclassed(head=Broken)
    model.build((None, 4))
    for path in ("dense0", "head"):
        with pytest.raises(RuntimeError, match="broken inside"):
            TappedModel(model, [path])(x)
        assert "call" not in vars(find_layer(model, path))


def test_a_call_that_the_instance_brought_itself_is_put_back(x) -> None:
    model = sequential()
    hidden = model.get_layer("hidden")

    def own(inputs, training=None):
        return layers.Dense.call(hidden, inputs) * 0.0

    vars(hidden)["call"] = own
    _, features = TappedModel(model, ["hidden"])(x)
    np.testing.assert_array_equal(features["hidden"], np.zeros((2, 5)))
    assert vars(hidden)["call"] is own


def test_two_threads_hear_their_own_pass(x) -> None:
    meeting = threading.Barrier(2, timeout=20)

    class Meeting(layers.Dense):
        def call(self, inputs, training=None):
            meeting.wait()  # both threads are inside the layer at once
            return super().call(inputs, training=training)

    hidden = Meeting(5, name="hidden")
    hidden.build((None, 4))

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = hidden
            self.built = True

        def call(self, x):
            return self.hidden(x)

    model = Model()
    heard: dict[float, np.ndarray] = {}

    def work(scale: float) -> None:
        for _ in range(10):
            _, features = TappedModel(model, ["hidden"])(tf.constant(x * scale))
            heard[scale] = features["hidden"].numpy()

    threads = [threading.Thread(target=work, args=(scale,)) for scale in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    kernel, bias = hidden.get_weights()
    for scale in (1.0, 2.0):
        np.testing.assert_allclose(heard[scale], x * scale @ kernel + bias, atol=1e-5)
    assert "call" not in vars(hidden)


def test_masks_stay_on_the_tensors() -> None:
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            layers.Embedding(5, 2, mask_zero=True, name="embedding"),
            layers.Dense(2, name="dense"),
        ]
    )
    tokens = tf.constant([[1, 2, 0]])
    outputs, features = TappedModel(model, ["embedding", "dense"])(tokens)
    for tensor in (outputs, features["embedding"], features["dense"]):
        np.testing.assert_array_equal(tensor._keras_mask, [[True, True, False]])


def test_a_layer_of_several_outputs_is_heard_whole() -> None:
    inputs = keras.Input((5, 4))
    sequence, _, cell = layers.LSTM(3, return_sequences=True, return_state=True, name="lstm")(
        inputs
    )
    model = keras.Model(inputs, [sequence, cell])
    outputs, features = TappedModel(model, ["lstm"])(tf.ones((2, 5, 4)))
    assert [tuple(t.shape) for t in features["lstm"]] == [(2, 5, 3), (2, 3), (2, 3)]
    np.testing.assert_array_equal(features["lstm"][0], outputs[0])
    np.testing.assert_array_equal(features["lstm"][2], outputs[1])


def test_mixed_precision_taps_are_what_the_layer_computed(x) -> None:
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, name="hidden", dtype="mixed_float16"),
            layers.Dense(3, dtype="float32"),
        ]
    )
    outputs, features = TappedModel(model, ["hidden"])(x)
    assert (features["hidden"].dtype, outputs.dtype) == (tf.float16, tf.float32)
    np.testing.assert_allclose(features["hidden"], dense(model, "hidden", x), atol=1e-2)


def test_inputs_may_be_dicts() -> None:
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    joined = layers.Add(name="joined")([inputs["a"], inputs["b"]])
    model = keras.Model(inputs, layers.Dense(2)(joined))
    batch = {"b": tf.ones((2, 4)), "a": tf.ones((2, 4))}
    _, features = TappedModel(model, ["joined"])(batch)
    np.testing.assert_array_equal(features["joined"], np.full((2, 4), 2.0))


def test_without_paths_it_is_the_model(x) -> None:
    model = Subclassed()
    outputs, features = TappedModel(model)(x)
    assert features == {}
    np.testing.assert_array_equal(outputs, model(x))
    np.testing.assert_array_equal(call_model(model, x, True), model(x))
