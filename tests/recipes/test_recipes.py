"""One contract for every recipe, and what is particular to each."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import subprocess
import sys
import typing

import numpy as np
import pytest

from keras_kd import data, recipes
from keras_kd.data import canvases
from keras_kd.losses import LogitsDistillation
from keras_kd.outputs import last_activations
from keras_kd.recipes import base
from keras_kd.running import answers, user_models
from keras_kd.student_losses import crossentropy

RAW_SHAPES = {
    "mnist1d": [(40,), (40, 1)],
    "tfds:mnist": [(28, 28), (28, 28, 1)],
    "tfds:fashion_mnist": [(28, 28), (28, 28, 1)],
}
"""The shapes that an example of the data set comes in, by its sources: noise of them will do."""


def raw(shape: tuple[int, ...], count: int = 12) -> data.Dataset:
    """Make a data set of noise in bytes, as a source would hand it over."""
    rng = np.random.default_rng(0)
    splits = {}
    for name in ("train", "validation", "test"):
        x = rng.integers(0, 256, (count, *shape)).astype("uint8")
        splits[name] = data.Split(x=x, y=np.arange(count) % 10)
    return data.Dataset(name="noise", classes=10, **splits)


@functools.cache
def few(name: str, count: int = 12) -> data.Dataset:
    """Load a few examples of a data set that needs no download."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvases, "COUNTS", dict.fromkeys(canvases.COUNTS, count))
        whole = data.load(name)
    splits = {
        split: getattr(whole, split).select(slice(count))
        for split in ("train", "validation", "test")
    }
    return dataclasses.replace(whole, **splits)


def prepared(recipe: recipes.Recipe) -> list[data.Dataset]:
    """Prepare a few examples, in every shape that the recipe's data may come in."""
    if recipe.data in RAW_SHAPES:
        return [recipe.prepare(raw(shape)) for shape in RAW_SHAPES[recipe.data]]
    return [recipe.prepare(few(recipe.data))]


@pytest.fixture(params=recipes.names())
def recipe(request: pytest.FixtureRequest) -> recipes.Recipe:
    return recipes.load(request.param)


def test_the_recipes_are_the_files_of_the_folder() -> None:
    assert {"fashion_cnn", "mnist1d", "mnist_mlp"} <= set(recipes.names())
    assert "base" not in recipes.names()
    assert recipes.names() == sorted(recipes.names())
    assert recipes.DEFAULT in recipes.names()


def test_an_unknown_recipe_is_answered_with_the_list_and_the_closest() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'mnist_mpl'[\s\S]*did you mean 'mnist_mlp'"):
        recipes.load("mnist_mpl")
    with pytest.raises(ValueError, match="fashion_cnn, mnist1d, mnist_mlp"):
        recipes.load("../base")


def test_reading_every_recipe_loads_neither_keras_nor_tensorflow() -> None:
    code = (
        "import json, sys; from keras_kd import recipes;"
        "[recipes.load(name).smoke() for name in recipes.names()];"
        "print(json.dumps([m for m in ('keras', 'tensorflow') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_fields_are_plain_values_of_their_declared_types(recipe: recipes.Recipe) -> None:
    plain = {"str": str, "bool": bool, "int": int, "float": float, "int | None": (int, type(None))}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name == "seeds":
            assert all(type(seed) is int for seed in value)
            assert len(value) >= 3
        else:
            assert isinstance(value, plain[field.type])
    assert typing.get_type_hints(recipes.Recipe)["seeds"] == tuple[int, ...]
    assert "\n" not in recipe.summary
    assert 10 < len(recipe.summary) <= 80


def test_a_recipe_opens_with_its_command(recipe: recipes.Recipe) -> None:
    module = sys.modules[type(recipe).__module__]
    name = module.__name__.rsplit(".", 1)[-1]
    assert f"    keras-kd run {name}\n" in (module.__doc__ or "")


def test_the_networks_take_the_prepared_data_and_answer_its_labels(recipe: recipes.Recipe) -> None:
    for dataset in prepared(recipe):
        for network in (recipe.teacher(), recipe.student()):
            recipe.adapt(network, dataset)
            assert network.input_shape[1:] == dataset.train.x.shape[1:]
            outputs = user_models.named(network, network(dataset.test.x, training=False))
            tasks = answers.understand("network", outputs, dataset.test.y)
            linear = set(last_activations(network)) == {"linear"}
            assert linear or set(tasks.values()) == {"values"}, "logits or values are expected"
            if recipe.data in RAW_SHAPES:
                assert dataset.train.x.dtype == np.float32
                assert tasks == {"": "classes"}
                assert outputs[""].shape == (len(dataset.test), 10)


def test_the_student_is_smaller_and_each_call_builds_anew(recipe: recipes.Recipe) -> None:
    assert recipe.student().count_params() < recipe.teacher().count_params()
    assert recipe.student() is not recipe.student()
    assert recipe.teacher() is not recipe.teacher()


def test_one_seed_gives_one_start(recipe: recipes.Recipe) -> None:
    import keras

    starts = []
    for seed in (3, 3, 4):
        keras.utils.set_random_seed(seed)
        starts.append(np.concatenate([w.ravel() for w in recipe.student().get_weights()]))
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])


def test_the_augmentations_are_stateless(recipe: recipes.Recipe) -> None:
    import tensorflow as tf

    split = prepared(recipe)[0].train
    for transform in (recipe.teacher_augmentation(), recipe.student_augmentation()):
        if transform is None:
            continue
        graph = tf.function(transform)
        one, same, other = (
            graph(split.x, split.y, tf.constant(seed, tf.int64))
            for seed in ([1, 2], [1, 2], [1, 3])
        )
        assert one[0].shape == split.x.shape
        assert one[0].dtype == split.x.dtype
        np.testing.assert_array_equal(one[0], same[0])
        np.testing.assert_array_equal(one[1], split.y)
        assert not np.array_equal(one[0], other[0])


def test_the_losses_and_metrics_are_new_objects(recipe: recipes.Recipe) -> None:
    import keras

    for make in (recipe.distillation_losses, recipe.loss, recipe.metrics, recipe.measures):
        first, second = (keras.tree.flatten(make()) for _ in range(2))
        assert not {id(one) for one in first} & {id(one) for one in second}
    weights = recipe.distillation_loss_weights()
    assert weights is None or len(weights) == len(recipe.distillation_losses())
    for loss in keras.tree.flatten(recipe.loss()):
        known = crossentropy(loss)
        assert known is None or known.from_logits
    assert keras.tree.flatten(recipe.metrics())


def test_the_temperature_reaches_the_loss_on_the_logits(recipe: recipes.Recipe) -> None:
    for loss in recipe.distillation_losses():
        if isinstance(loss, LogitsDistillation):
            assert loss.temperature == recipe.temperature


def test_the_learning_rate_falls_from_its_highest_to_zero(recipe: recipes.Recipe) -> None:
    optimizer = recipe.optimizer(0.5, total_steps=10)
    student = recipe.student()
    optimizer.build(student.trainable_variables)
    rates = []
    for _ in range(11):
        rates.append(float(np.asarray(optimizer.learning_rate)))
        optimizer.iterations.assign_add(1)
    assert rates[0] == pytest.approx(0.5)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-7)


def test_the_smoke_size_is_the_same_story_in_seconds(recipe: recipes.Recipe) -> None:
    small = recipe.smoke()
    assert type(small) is type(recipe)
    assert len(small.seeds) == 1
    assert small.seeds[0] in recipe.seeds
    assert small.epochs <= 2
    assert small.teacher_epochs <= 2
    assert small.limit is not None
    assert small.limit <= 256
    assert small.batch_size * small.steps_per_execution <= small.limit
    same = ("data", "temperature", "student_loss_weight", "learning_rate", "validation")
    assert all(getattr(small, name) == getattr(recipe, name) for name in same)


def test_two_steps_at_the_smoke_size(recipe: recipes.Recipe) -> None:
    small = recipe.smoke()
    dataset = prepared(small)[0]
    split = dataset.train.select(slice(8))
    for network, transform in (
        (small.teacher(), small.teacher_augmentation()),
        (small.student(), small.student_augmentation()),
    ):
        small.adapt(network, dataset)
        network.compile(small.optimizer(1e-3, 2), loss=small.loss(), metrics=small.metrics())
        stream = split.batches(4, shuffle_seed=0, transform=transform)
        history = network.fit(stream, epochs=1, verbose=0).history
        assert len(history) > 1
        assert all(np.isfinite(values).all() for values in history.values())


def test_the_networks_of_mnist_mlp_are_the_seeds() -> None:
    recipe = recipes.load("mnist_mlp")
    sizes = {"teacher": (784, 512, 256, 10), "student": (784, 128, 64, 10)}
    for name, widths in sizes.items():
        expected = sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))
        assert getattr(recipe, name)().count_params() == expected


def test_the_fashion_student_has_under_20k_parameters() -> None:
    student = recipes.load("fashion_cnn").student()
    assert student.count_params() < 20_000
    assert any("depthwise" in layer.name for layer in student.layers)


@pytest.mark.parametrize("name", ["mnist_mlp", "fashion_cnn"])
def test_image_networks_take_raw_pixels(name: str) -> None:
    recipe = recipes.load(name)
    prepared = recipe.prepare(raw((28, 28)))
    assert prepared.train.x.max() > 200
    scale = recipe.student().get_layer("scale")
    extremes = np.asarray(scale(np.float32([0, 255])))
    assert np.abs(extremes).max() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"epochs": -1}, ValueError, "`epochs` must be at least 1"),
        ({"epochs": 2.5}, TypeError, "`epochs` must be a whole number"),
        ({"epochs": True}, TypeError, "`epochs` must be a whole number"),
        ({"teacher_epochs": 0}, ValueError, "`teacher_epochs` must be at least 1"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ({"steps_per_execution": 0}, ValueError, "`steps_per_execution` must be at least 1"),
        ({"limit": 0}, ValueError, "`limit` must be at least 1"),
        ({"limit": "9"}, TypeError, "`limit` must be a whole number"),
        ({"temperature": 0.0}, ValueError, "`temperature` must be positive"),
        ({"temperature": float("nan")}, ValueError, "`temperature` must be finite"),
        ({"temperature": "4"}, TypeError, "`temperature` must be a number"),
        ({"learning_rate": -0.1}, ValueError, "`learning_rate` must be positive"),
        ({"teacher_learning_rate": 0}, ValueError, "`teacher_learning_rate` must be positive"),
        ({"student_loss_weight": 1.1}, ValueError, "`student_loss_weight` must be between"),
        ({"validation": 0.0}, ValueError, "`validation` must be between"),
        ({"seeds": [0, 1]}, TypeError, "`seeds` must be a tuple"),
        ({"seeds": ()}, ValueError, "`seeds` must be different numbers, one at least"),
        ({"seeds": (1, 1)}, ValueError, "`seeds` must be different numbers, one at least"),
        ({"seeds": (-1,)}, ValueError, "`seeds` must be at least 0"),
        ({"seeds": (0.5,)}, TypeError, "`seeds` must be a whole number"),
    ],
)
def test_values_that_cannot_be_trained_with_are_refused(
    recipe: recipes.Recipe, change: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        dataclasses.replace(recipe, **change)


def test_a_recipe_without_its_networks_is_refused_by_words() -> None:
    recipe = recipes.load("mnist1d")
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    bare = base.Recipe(**values)
    with pytest.raises(TypeError, match="The recipe Recipe has no teacher"):
        bare.teacher()
    with pytest.raises(TypeError, match="The recipe Recipe has no student"):
        bare.student()
    assert bare.teacher_augmentation() is None
    assert bare.student_augmentation() is None
