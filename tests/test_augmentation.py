"""The same views come again: in any order, batch and process, and from the seed alone."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_kd import augmentation as aug
from keras_kd import fingerprints
from keras_kd.augmentation import ReplayableAugmentation, draws

N = 10
IMAGES = np.random.default_rng(1).integers(0, 256, (N, 6, 5, 1)).astype("uint8")
LABELS = np.arange(N)
WEIGHTS = np.linspace(0, 1, N).astype("float32")
MOVED = aug.chain(aug.flips(), aug.shifts(2), aug.noise(5))


def own(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Someone's own function, with a condition on a tensor."""
    image = tf.cast(image, tf.float32)
    if tf.random.stateless_uniform((), seed) < 0.5:
        image = image[::-1]
    return image + tf.random.stateless_normal(tf.shape(image), seed) * tf.reduce_mean(image)


def reversed_batch(x, y, seed):
    """Someone's own function of a batch: noise, and the order turned round."""
    return x[::-1] + tf.random.stateless_uniform(tf.shape(x), seed), y[::-1]


FUNCTIONS = {"ours": MOVED, "one's own": own, "mixed": aug.chain(own, aug.noise(1))}


def source(parts: int = 2, order=None) -> tf.data.Dataset:
    arrays = (IMAGES, LABELS, WEIGHTS)[:parts]
    arrays = tuple(array if order is None else array[order] for array in arrays)
    return tf.data.Dataset.from_tensor_slices(arrays if parts > 1 else arrays[0])


def read(dataset: tf.data.Dataset, batched: bool = True) -> list[np.ndarray]:
    """Give x, y, … of all examples as arrays."""
    dataset = dataset.unbatch() if batched else dataset
    elements = [e if isinstance(e, tuple) else (e,) for e in dataset.as_numpy_iterator()]
    return [np.stack(part) for part in zip(*elements, strict=True)]


def same(first, second) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


# The law


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_the_same_views_come_again(kind) -> None:
    augmentation = ReplayableAugmentation(FUNCTIONS[kind], views=2, seed=3)
    data = source().batch(4).apply(augmentation)
    first = read(data)
    same(first, read(data))
    again = ReplayableAugmentation(FUNCTIONS[kind], views=2, seed=3)
    same(first, read(source().batch(4).apply(again)))
    assert len(first[0]) == 2 * N
    np.testing.assert_array_equal(first[1], np.tile(LABELS, 2))
    assert len({image.tobytes() for image in first[0]}) == 2 * N


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_batched_or_not_in_any_order(kind) -> None:
    augmentation = ReplayableAugmentation(FUNCTIONS[kind], views=2)
    expected = read(source().batch(4).apply(augmentation))
    same(expected, read(source().apply(augmentation), batched=False))
    same(expected, read(source().batch(7).apply(augmentation)))
    static = source().batch(5, drop_remainder=True)
    same(expected, read(static.apply(ReplayableAugmentation(FUNCTIONS[kind], 2, batched=True))))
    order = np.random.default_rng(0).permutation(N)
    x, y = read(source(order=order).batch(3).apply(augmentation))
    for image, label, again in zip(x, y, np.repeat([0, 1], N), strict=True):
        np.testing.assert_array_equal(image, expected[0][label + N * again])
    shuffled = read(source().shuffle(N, seed=1).batch(3).apply(augmentation))
    assert {(int(y), x.tobytes()) for x, y in zip(*shuffled, strict=True)} == {
        (int(y), x.tobytes()) for x, y in zip(*expected, strict=True)
    }


PROGRAM = """
import hashlib, sys
sys.path.insert(0, {folder!r})
import test_augmentation as here
data = here.source().batch(4).apply(here.ReplayableAugmentation(here.MOVED, 2, seed=5))
mixed = here.aug.mixup(0.3, classes=10)
mixed = here.source().batch(4).apply(here.ReplayableAugmentation(mixed, 2, batch_size=4))
print("digest", here.digest(data), here.digest(mixed))
"""


def digest(data: tf.data.Dataset) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for part in read(data))).hexdigest()


def test_in_a_fresh_process() -> None:
    data = source().batch(4).apply(ReplayableAugmentation(MOVED, 2, seed=5))
    mixed = ReplayableAugmentation(aug.mixup(0.3, classes=10), 2, batch_size=4)
    here = f"digest {digest(data)} {digest(source().batch(4).apply(mixed))}"
    program = PROGRAM.format(folder=str(__file__).rpartition("/")[0])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert here in done.stdout, done.stderr[-2000:]


def test_the_seed_of_a_view_is_made_of_content_view_and_seed() -> None:
    def shown(image, seed):
        return {"image": image, "seed": seed}["seed"]

    data = source().batch(4).apply(ReplayableAugmentation(shown, views=3, seed=-7))
    content = fingerprints.of(tf.constant(IMAGES))
    expected = [draws.view_seeds(content, view, -7).numpy() for view in range(3)]
    np.testing.assert_array_equal(read(data)[0], np.concatenate(expected))


def test_views_and_seeds_differ() -> None:
    views = [
        read(source().batch(4).apply(ReplayableAugmentation(own, views=2, seed=seed)))[0]
        for seed in (0, 1, -1)
    ]
    assert len({image.tobytes() for image in np.concatenate(views)}) == 3 * 2 * N


def test_the_first_views_are_the_same_however_many_there_are() -> None:
    few, many = (read(source().batch(4).apply(ReplayableAugmentation(MOVED, n))) for n in (2, 5))
    np.testing.assert_array_equal(few[0], many[0][: 2 * N])


def test_equal_examples_get_equal_views() -> None:
    twice = tf.data.Dataset.from_tensor_slices(np.repeat(IMAGES[:3], 2, axis=0)).batch(4)
    (x,) = read(twice.apply(ReplayableAugmentation(MOVED, views=2)))
    np.testing.assert_array_equal(x[::2], x[1::2])


def test_content_is_type_place_and_bytes() -> None:
    first, second = tf.constant(IMAGES), tf.constant(IMAGES[::-1])
    as_float = tf.cast(first, tf.float32)
    contents = [
        first,
        second,
        tf.bitcast(first, tf.int8),
        as_float,
        (first, second),
        (second, first),
        {"a": first, "b": tf.constant([["a", "bc"]] * N)},
        {"a": first, "b": tf.constant([["ab", "c"]] * N)},
    ]
    names = [bytes(fingerprints.of(content)[0].numpy()) for content in contents]
    assert len(set(names)) == len(names)
    np.testing.assert_array_equal(fingerprints.of(first), fingerprints.of(second)[::-1])


# What comes out is as it was given


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("batch", [None, 4])
def test_labels_and_weights_pass_by(parts, batch) -> None:
    data = source(parts)
    if parts == 1 and batch is None:
        data = data.apply(ReplayableAugmentation(MOVED, views=2, batched=False))
    else:
        data = (data if batch is None else data.batch(batch)).apply(
            ReplayableAugmentation(MOVED, 2)
        )
    x, *rest = read(data, batched=batch is not None)
    assert x.shape == (2 * N, 6, 5, 1) and x.dtype == np.uint8
    for given, passed in zip((LABELS, WEIGHTS), rest, strict=False):
        np.testing.assert_array_equal(passed, np.tile(given, 2))
    assert len(rest) == parts - 1


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("batch_size", [None, 4, 3], ids=["examples", "same", "other"])
def test_the_form_and_length_of_a_data_set_are_kept(views, batch_size) -> None:
    function = MOVED if batch_size is None else aug.mixup(1.0, classes=N)
    augmentation = ReplayableAugmentation(function, views, batch_size=batch_size)
    stated = ReplayableAugmentation(function, views, batch_size=batch_size, batched=True)
    assert source().apply(augmentation).cardinality() == views * N
    data = source().batch(4).apply(augmentation)
    assert data.cardinality() == views * 3
    assert [len(x) for x, _ in data] == [4, 4, 2] * views
    assert data.element_spec[0].shape == (None, 6, 5, 1)
    static = source().batch(4, drop_remainder=True).apply(stated)
    assert static.element_spec[0].shape[1:] == (6, 5, 1)
    assert [len(x) for x, _ in static] == [4, 4] * views
    assert static.cardinality() == views * 2
    unknown = source().filter(lambda x, y: y < 7).batch(4).apply(augmentation)
    assert unknown.cardinality() == tf.data.UNKNOWN_CARDINALITY
    assert [len(x) for x, _ in unknown] == [4, 3] * views
    uneven = source().batch(4).concatenate(source().batch(5)).apply(augmentation)
    if batch_size == 3:
        assert [len(x) for x, _ in uneven] == [4, 4, 2, 5, 5] * views
    assert sum(len(x) for x, _ in uneven) == 2 * N * views
    assert uneven.cardinality() == 5 * views


def test_an_endless_data_set_has_one_view() -> None:
    for batch_size, function in ((None, MOVED), (4, aug.mixup(classes=N))):
        augmentation = ReplayableAugmentation(function, batch_size=batch_size)
        endless = source().batch(4).repeat().apply(augmentation)
        assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
        expected = read(source().batch(4).apply(augmentation))
        same([part[:4] for part in expected], read(endless.take(1)))


def test_structures_of_inputs() -> None:
    x = {"image": IMAGES, "both": (IMAGES[:, 0], LABELS.astype("float32"))}

    def function(example, seed):
        return {**example, "image": aug.flips()(example["image"], seed)}

    data = tf.data.Dataset.from_tensor_slices((x, LABELS)).batch(4)
    first, _ = next(iter(data.apply(ReplayableAugmentation(function))))
    np.testing.assert_array_equal(first["both"][0], IMAGES[:4, 0])
    seeds = draws.view_seeds(fingerprints.of(tf.nest.map_structure(tf.constant, x)), 0, 0)
    expected = aug.flips().batch(tf.constant(IMAGES), seeds)
    np.testing.assert_array_equal(first["image"], expected[:4])


def test_inside_a_graph() -> None:
    augmentation = ReplayableAugmentation(own, views=2)

    @tf.function
    def total(augmentation):
        data = source().batch(4).apply(augmentation)
        return data.reduce(0.0, lambda sum_, e: sum_ + tf.reduce_sum(e[0]))

    expected = read(source().batch(4).apply(augmentation))[0].sum(dtype="float64")
    assert float(total(augmentation)) == pytest.approx(expected, rel=1e-5)


# Batches


def by_batch(x, y, size, view=0, seed=0):
    """Mixup in batches of `size`, by hand."""
    parts = []
    for start in range(0, len(x), size):
        piece = tf.constant(x[start : start + size])
        number = draws.batch_seed(fingerprints.of(piece), view, seed)
        parts.append(aug.mixup(0.3, classes=N)(piece, y[start : start + size], number))
    return [np.concatenate([part[place] for part in parts]) for place in (0, 1)]


@pytest.mark.parametrize("size", [3, 4, 10, 99])
def test_a_function_of_batches_gets_its_size(size) -> None:
    augmentation = ReplayableAugmentation(aug.mixup(0.3, classes=N), 2, seed=4, batch_size=size)
    stated = ReplayableAugmentation(
        aug.mixup(0.3, classes=N), 2, seed=4, batch_size=size, batched=True
    )
    passes = [by_batch(IMAGES, LABELS, size, view, 4) for view in (0, 1)]
    expected = [np.concatenate(part) for part in zip(*passes, strict=True)]
    same(expected, read(source().apply(augmentation), batched=False))
    same(expected, read(source().batch(4).apply(augmentation)))
    same(expected, read(source().batch(5, drop_remainder=True).apply(stated)))


def test_the_seed_of_a_batch_knows_its_order_and_size() -> None:
    content = fingerprints.of(tf.constant(IMAGES))
    batches = [content, content[:-1], content[::-1], content[:1], content[:0]]
    seeds = {tuple(draws.batch_seed(batch, 0, 0).numpy()) for batch in batches}
    assert len(seeds) == len(batches)


def test_a_function_of_batches_of_one_s_own() -> None:
    augmentation = ReplayableAugmentation(reversed_batch, batch_size=5)
    floats = source(3).map(lambda x, y, w: (tf.cast(x, tf.float32), y, w))
    _, y, w = read(floats.batch(5).apply(augmentation))
    np.testing.assert_array_equal(y, [4, 3, 2, 1, 0, 9, 8, 7, 6, 5])
    np.testing.assert_array_equal(w, WEIGHTS)
    alone = floats.map(lambda x, y, w: x).batch(5)
    only_x = ReplayableAugmentation(
        lambda x, y, seed: (reversed_batch(x, x, seed)[0], y), batch_size=5
    )
    same(read(alone.apply(only_x)), read(floats.batch(5).apply(augmentation))[:1])


def test_mixup_of_inputs_alone() -> None:
    augmentation = ReplayableAugmentation(aug.mixup(0.3), batch_size=4)
    mixed = read(source(1).batch(4).apply(augmentation))
    same(mixed, by_batch(IMAGES, LABELS, 4)[:1])


def test_examples_then_batches() -> None:
    mixing = ReplayableAugmentation(aug.cutmix(classes=N), batch_size=4)
    data = source().batch(4).apply(ReplayableAugmentation(MOVED, 2)).apply(mixing)
    assert data.cardinality() == 6
    same(read(data), read(data))


# Randomness that cannot come again

GENERATOR = tf.random.Generator.from_seed(1)
PYTHON = np.random.default_rng(2)
COUNTER = tf.Variable(0.0)
TABLE = tf.Variable(2.0)


def counted(x, seed):
    return tf.cast(x, tf.float32) + COUNTER.assign_add(1.0)


NOT_FROM_THE_SEED = {
    "an image operation": (lambda x, s: tf.image.random_flip_left_right(x), "RandomUniform"),
    "uniform": (lambda x, s: x + tf.cast(tf.random.uniform(x.shape) * 9, x.dtype), "RandomUniform"),
    "shuffle": (lambda x, s: tf.random.shuffle(x), "RandomShuffle"),
    "a generator": (lambda x, s: x + tf.cast(GENERATOR.normal(()), x.dtype), "RngReadAndSkip"),
    "a counter": (counted, "AssignAddVariableOp"),
    "NumPy": (lambda x, s: x + np.uint8(PYTHON.integers(256)), "Python or NumPy"),
    "in a branch": (
        lambda x, s: tf.cond(s[0] > 0, lambda: tf.random.shuffle(x), lambda: x),
        "RandomShuffle",
    ),
    "in Python": (
        lambda x, s: tf.ensure_shape(
            tf.numpy_function(lambda a: a + np.uint8(PYTHON.integers(256)), [x], tf.uint8), x.shape
        ),
        "Python code that answers differently",
    ),
    "in a chain": (aug.chain(lambda x, s: tf.random.shuffle(x), aug.flips()), "RandomShuffle"),
}


@pytest.mark.parametrize("case", NOT_FROM_THE_SEED)
@pytest.mark.parametrize("batch", [None, 4])
def test_randomness_from_elsewhere_is_refused(case, batch) -> None:
    function, cause = NOT_FROM_THE_SEED[case]
    data = source() if batch is None else source().batch(batch)
    with pytest.raises(ValueError, match="gives another result for the same seed") as refused:
        data.apply(ReplayableAugmentation(function))
    assert cause in str(refused.value) and "tf.random.stateless_" in str(refused.value)


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("parts", [1, 2])
def test_batch_functions_are_looked_at_too(batch, parts) -> None:
    data = source(parts) if batch is None else source(parts).batch(batch)
    batched = None if parts == 2 else batch is not None

    def drawn(x, y, seed):
        return tf.numpy_function(lambda a: a + np.uint8(PYTHON.integers(256)), [x], tf.uint8), y

    with pytest.raises(ValueError, match="gives another result for the same seed"):
        data.apply(ReplayableAugmentation(drawn, batch_size=4, batched=batched))


def test_what_only_reads_is_allowed() -> None:
    def python(image):
        return image * np.uint8(2)

    def function(image, seed):
        image = tf.ensure_shape(tf.numpy_function(python, [image], tf.uint8), image.shape)
        tf.debugging.assert_less(seed[0], 2**31 - 1)
        return tf.cast(image, tf.float32) * TABLE + np.ones((6, 5, 1), "float32")

    (x,) = read(source(1).batch(4).apply(ReplayableAugmentation(function)))
    np.testing.assert_array_equal(x, (IMAGES * np.uint8(2)).astype("float32") * 2 + 1)


# What is refused


def refuse_function(error, words, *arguments, **options):
    with pytest.raises(error, match=words):
        ReplayableAugmentation(*arguments, **options)


def test_arguments_are_checked() -> None:
    refuse_function(TypeError, "The augmentation cannot be called", 3)
    refuse_function(ValueError, "`views` must be a whole number of 1 or more", own, 0)
    refuse_function(TypeError, "`seed` must be a whole number", own, seed=1.0)
    refuse_function(TypeError, "`seed` must be a whole number", own, seed=True)
    refuse_function(ValueError, "`seed` must fit into 64 bits", own, seed=2**63)
    refuse_function(ValueError, "`batch_size` must be a whole number", reversed_batch, batch_size=0)
    refuse_function(TypeError, "`batched` must be True, False or None", own, batched=1)
    refuse_function(ValueError, "`mixup.0.2.` takes a batch", aug.mixup())
    refuse_function(ValueError, r"`flips\(\)` takes one example", aug.flips(), batch_size=4)
    refuse_function(TypeError, "`reversed_batch` does not take 2 arguments", reversed_batch)
    refuse_function(TypeError, "`mine` does not take 3", own, batch_size=4, name="mine")


def refuse_data(words, data, function=MOVED, error=ValueError, **options):
    with pytest.raises(error, match=words):
        ReplayableAugmentation(function, **options)(data)


def test_data_sets_are_checked() -> None:
    refuse_data("is applied to a data set", IMAGES, error=TypeError)
    refuse_data("not clear whether the data is batched", source().batch(5, True))
    refuse_data("not clear whether the data is batched", source(1))
    refuse_data("cannot be batched", source(), batched=True)
    refuse_data("more than x, y and weights", source(3).map(lambda x, y, w: (x, y, w, w)))
    refuse_data("An endless data set has no second view", source().repeat(), views=2)
    words = tf.data.Dataset.from_tensor_slices((tf.ragged.constant([[1], [2, 3]]), [0, 1]))
    refuse_data("takes dense tensors", words)
    refuse_data("takes dense tensors", words.batch(2))
    sparse = tf.data.Dataset.from_tensor_slices((tf.sparse.eye(3), [0, 1, 2]))
    refuse_data("takes dense tensors", sparse)
    weighted = source(3).batch(4)
    refuse_data("their weights cannot be mixed", weighted, aug.mixup(), batch_size=4)


def test_soft_targets_come_after() -> None:
    from keras_kd.soft_batch import SoftBatch

    soft = source().map(lambda x, y: (SoftBatch(x, {"outputs": tf.zeros(3), "layers": {}}), y))
    refuse_data("carries soft targets already", soft)
    refuse_data("carries soft targets already", soft.map(lambda x, y: x), batched=False)


@pytest.mark.parametrize("data", [source(), source().batch(4)], ids=["examples", "batches"])
def test_another_structure_is_refused(data) -> None:
    refuse_data("`<lambda>` returns another structure", data, lambda x, seed: (x, x))
    refuse_data("returns another structure", data, lambda x, y, seed: x, batch_size=4)
    refuse_data("returns another structure", data, lambda x, seed: {"image": x}, name="mine")


def test_it_says_what_it_is() -> None:
    said = repr(ReplayableAugmentation(aug.crops(4, 4, padding=1), 2, seed=1))
    assert said == "ReplayableAugmentation(crops(4, 4, padding=1), views=2, seed=1)"
    said = repr(ReplayableAugmentation(aug.mixup(classes=3), batch_size=64))
    assert said == ("ReplayableAugmentation(mixup(0.2, classes=3), views=1, seed=0, batch_size=64)")
