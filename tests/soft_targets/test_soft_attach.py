"""`SoftTargets.attach`: every example gets its own row, in any order, or is refused."""

from __future__ import annotations

import gc
import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd import fingerprints
from keras_kd.soft_targets import in_order
from keras_kd.soft_targets.finding import Finder
from keras_kd.soft_targets.in_order import EVERY

COUNT = 100


def triple(x):
    """A teacher whose answer to an example says which example it was."""
    return np.stack([3.0 * x[:, 0], x[:, 0] - 1.0], axis=-1)


@pytest.fixture(scope="module")
def examples() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(3).normal(size=(COUNT, 4)).astype("float32")
    return x, np.arange(COUNT)


@pytest.fixture(scope="module")
def soft(examples, tmp_path_factory) -> kd.SoftTargets:
    folder = tmp_path_factory.mktemp("soft") / "store"
    return kd.SoftTargets.build(
        triple, examples[0], folder, dtype="float32", outputs="values", batch_size=16, verbose=0
    )


def plain(examples) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(examples)


def seen(dataset, examples) -> list[int]:
    """The labels that come, in order; each input and each target must be that label's own."""
    labels = []
    for batch, y in dataset.as_numpy_iterator():
        inputs, outputs = np.atleast_2d(batch.inputs), np.atleast_2d(batch.teacher["outputs"])
        y = np.atleast_1d(y)
        np.testing.assert_array_equal(inputs, examples[0][y])
        np.testing.assert_array_equal(outputs, triple(examples[0][y]).astype("float32"))
        labels += y.tolist()
    return labels


ORDERS = {
    "one by one": lambda ds: ds,
    "batched": lambda ds: ds.batch(16),
    "batched unlike the build": lambda ds: ds.batch(7),
    "without the remainder": lambda ds: ds.batch(16, drop_remainder=True),
    "in one batch": lambda ds: ds.batch(COUNT),
    "repeated before": lambda ds: ds.repeat(3).batch(7),
    "repeated after batching": lambda ds: ds.batch(7).repeat(3),
    "shuffled before": lambda ds: ds.shuffle(COUNT, seed=1).batch(16),
    "shuffled batches before": lambda ds: ds.batch(9).shuffle(20, seed=1),
    "shuffled one by one": lambda ds: ds.shuffle(30, seed=2),
    "backwards": lambda ds: ds.batch(COUNT).map(lambda x, y: (x[::-1], y[::-1])).rebatch(8),
    "in batches of many sizes": lambda ds: ds.batch(10).concatenate(ds.batch(3)),
}


@pytest.mark.parametrize("order", ORDERS)
def test_each_example_gets_its_own_row(soft, examples, order):
    given = ORDERS[order](plain(examples))
    attached = soft.attach(given)
    expected = [y for _, ys in given.as_numpy_iterator() for y in np.atleast_1d(ys)]
    first = seen(attached, examples)
    assert len(first) == len(expected)
    assert sorted(first) == sorted(expected)
    assert sorted(seen(attached, examples)) == sorted(expected), "and in a second pass"
    assert attached.cardinality() == given.cardinality()
    assert attached.element_spec[0].inputs == given.element_spec[0]


def test_what_is_shuffled_and_batched_afterwards_keeps_its_targets(soft, examples):
    attached = soft.attach(plain(examples)).shuffle(COUNT, seed=5).repeat(2).batch(11)
    assert sorted(seen(attached, examples)) == sorted([*range(COUNT)] * 2)


@pytest.mark.parametrize("order", ORDERS)
def test_the_options_of_the_data_stay(soft, examples, order):
    options = tf.data.Options()
    options.threading.private_threadpool_size = 3
    never = tf.data.experimental.AutoShardPolicy.OFF
    options.experimental_distribute.auto_shard_policy = never
    attached = soft.attach(ORDERS[order](plain(examples)).with_options(options))
    kept = attached.options()
    assert kept.threading.private_threadpool_size == 3
    assert kept.experimental_distribute.auto_shard_policy == never
    assert seen(attached, examples)


def test_arrays_are_taken_as_examples(soft, examples):
    assert seen(soft.attach(examples), examples) == list(range(COUNT))
    (batch,) = next(iter(soft.attach(examples[0])))
    np.testing.assert_array_equal(batch.inputs, examples[0][0])


def test_weights_go_along_and_unlabelled_data_is_a_tuple_of_one(soft, examples):
    x, y = examples
    weighted = plain((x, y, np.ones(COUNT, "float32"))).batch(8)
    batch, _, weight = next(iter(soft.attach(weighted)))
    assert weight.shape == (8,) and batch.inputs.shape == (8, 4)
    alone = next(iter(soft.attach(tf.data.Dataset.from_tensor_slices(x).batch(8))))
    assert type(alone) is tuple and len(alone) == 1
    assert keras.utils.unpack_x_y_sample_weight(alone)[1] is None


def test_the_specs_are_those_of_the_store(soft, examples):
    spec = soft.attach(plain(examples).batch(16)).element_spec[0]
    assert isinstance(spec, kd.SoftBatch)
    assert spec.teacher == {
        "outputs": tf.TensorSpec((None, 2), tf.float32),
        "layers": {},
        "store": tf.TensorSpec((None,), tf.int64),
    }
    spec = soft.attach(plain(examples).batch(20, drop_remainder=True)).element_spec[0]
    assert spec.teacher["outputs"].shape == (20, 2)


# --- what it refuses ----------------------------------------------------------------------------

FOREIGN = {
    "augmented": lambda x: x + np.float32(1e-6),
    "scaled": lambda x: x / 2.0,
    "of another type": lambda x: x.astype("float64"),
    "of other examples": lambda x: x + 1.0,
}


@pytest.mark.parametrize("how", FOREIGN)
def test_what_the_teacher_did_not_see_is_refused_at_once(soft, examples, how):
    x, y = examples
    words = (
        r"There are no soft targets for example 0 of a batch of 16[\s\S]*16 of 16 are unknown"
        r"[\s\S]*expected: an example that the teacher saw, by its content; of 100 the first ones "
        r"held float32 \(4,\) from -\S+ to \S+[\s\S]*the same scaling"
    )
    with pytest.raises(ValueError, match=words):
        soft.attach(plain((FOREIGN[how](x), y)).batch(16))


def test_attaching_leaves_a_shuffle_as_it_is(soft, examples):
    """A shuffle draws anew for each reading, so that a look at it would change what comes later."""
    orders = []
    for prepare in (lambda ds: ds, soft.attach):
        shuffled = prepare(plain(examples).shuffle(COUNT, seed=4).batch(8))
        orders.append([y.tolist() for _ in range(2) for _, y in shuffled.as_numpy_iterator()])
    assert orders[0] == orders[1]


def test_foreign_data_behind_a_shuffle_is_refused_when_it_is_read(soft, examples):
    attached = soft.attach(plain((examples[0] + 1.0, examples[1])).shuffle(8, seed=1).batch(4))
    with pytest.raises(tf.errors.OpError, match="no soft targets for example 0 of a batch of 4"):
        next(iter(attached))


def test_one_foreign_example_in_a_later_batch_is_named(soft, examples):
    x, y = examples
    changed = x.copy()
    changed[37] += 1.0
    attached = soft.attach(plain((changed, y)).batch(16))
    with pytest.raises(tf.errors.OpError, match="no soft targets for example 5 of a batch of 16"):
        seen(attached, (changed, y))


def test_the_words_of_one_example(soft, examples):
    x = np.concatenate([examples[0][:2], np.full((1, 4), 7.0, "float32")])
    with pytest.raises(
        ValueError, match=r"given:\s+float32 \(4,\) from 7 to 7; 1 of 3 are unknown"
    ):
        Finder(soft.store)(fingerprints.of(x).numpy(), x)


def test_what_is_no_data_set_of_dense_examples_is_refused(soft, examples):
    with pytest.raises(TypeError, match="The data is no data set"):
        soft.attach("train")
    ragged = tf.data.Dataset.from_tensors(tf.ragged.constant([[1.0], [1.0, 2.0]]))
    with pytest.raises(TypeError, match="no dense tensor"):
        soft.attach(ragged)
    with pytest.raises(ValueError, match="The data is empty, so there is nothing to attach"):
        soft.attach(plain(examples).take(0))


def test_a_called_store_says_what_to_do(soft, examples):
    with pytest.raises(ValueError, match=r"no model that could be asked[\s\S]*attach\(data\)"):
        soft(examples[0])


# --- data that is too short ---------------------------------------------------------------------

SHORT = {
    "of known length": (lambda ds: ds.take(40), 40),
    "batched": (lambda ds: ds.take(40).batch(8), 40),
    "of unknown length": (lambda ds: ds.take(40).filter(lambda x, y: True), 40),
    "batched of unknown length": (lambda ds: ds.filter(lambda x, y: y < 40).batch(16), 40),
}


@pytest.mark.parametrize("kind", SHORT)
def test_a_truncated_data_set_is_told_of(soft, examples, kind):
    shorten, count = SHORT[kind]
    with pytest.warns(UserWarning, match=f"fewer examples than [\\s\\S]*about {count} of 100"):
        assert len(seen(soft.attach(shorten(plain(examples))), examples)) == count


WHOLE = {
    "batched": lambda ds: ds.batch(16),
    "without the remainder": lambda ds: ds.batch(16, drop_remainder=True),
    "of unknown length": lambda ds: ds.filter(lambda x, y: True),
    "twice": lambda ds: ds.repeat(2).batch(16),
    "for ever": lambda ds: ds.batch(16).repeat(),
    "a small batch first": lambda ds: ds.take(2).batch(2).concatenate(ds.skip(2).batch(49)),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_data_set_is_not_told_of(soft, examples, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached = soft.attach(WHOLE[kind](plain(examples)))
        for _ in range(2):
            seen(attached.take(300), examples)


# --- what is checked ----------------------------------------------------------------------------


@pytest.fixture
def looked_up(monkeypatch):
    """How many examples were looked up by their content, call by call."""
    sizes: list[int] = []
    original = Finder.__call__

    def call(self, names, *leaves):
        sizes.append(len(names))
        return original(self, names, *leaves)

    monkeypatch.setattr(Finder, "__call__", call)
    return sizes


IN_ORDER = {
    "one by one": lambda ds: ds,
    "batches and a shorter one": lambda ds: ds.batch(16),
    "whole batches": lambda ds: ds.batch(16, drop_remainder=True),
    "several times": lambda ds: ds.batch(7).repeat(3),
    "twice and a part": lambda ds: ds.batch(7).repeat(3).take(38),
    "a part": lambda ds: ds.batch(16).take(3),
    "in one batch": lambda ds: ds.batch(COUNT),
}


@pytest.mark.filterwarnings("ignore:The data has fewer examples")
@pytest.mark.parametrize("order", IN_ORDER)
@pytest.mark.parametrize("block", [1, 800, 4 * 2**20], ids="{} bytes".format)
def test_data_in_order_meets_its_rows(soft, examples, looked_up, monkeypatch, block, order):
    """No example is looked up, neither in the pass that compares all nor in those after it."""
    monkeypatch.setattr(in_order, "BLOCK_BYTES", block)  # 800: some batches at once, not all
    compared = []
    answers = in_order._Passes.answers
    monkeypatch.setattr(
        in_order._Passes,
        "answers",
        lambda self, where, names, *leaves: (
            compared.append(len(names)) or answers(self, where, names, *leaves)
        ),
    )
    given = IN_ORDER[order](plain(examples))
    expected = [y for _, ys in given.as_numpy_iterator() for y in np.atleast_1d(ys)]
    attached = soft.attach(given)
    del looked_up[:]  # of the look at the first batch
    for _ in range(3):
        assert seen(attached, examples) == expected
    assert sum(compared) == len(expected)
    assert looked_up == []


def test_data_in_another_order_is_looked_up(soft, examples, looked_up):
    attached = soft.attach(plain(examples).batch(COUNT).map(lambda x, y: (x[::-1], y[::-1])))
    seen(attached, examples)
    assert looked_up == [COUNT, COUNT]  # the look at the first batch, and the pass


def test_where_the_order_breaks_the_rows_are_looked_up(soft, examples, looked_up):
    """Two batches change places in the middle, and only these are looked up."""
    x, y = examples
    order = np.r_[0:20, 40:60, 20:40, 60:100]
    attached = soft.attach(plain((x[order], y[order])).batch(20))
    del looked_up[:]
    for _ in range(3):
        assert seen(attached, examples) == order.tolist()
    assert looked_up == [20, 20] * 3


def test_labels_of_many_lengths_go_along(soft, examples):
    x, labels = examples[0][:20], tf.ragged.constant([[1] * (n % 3) for n in range(20)])
    attached = soft.attach(plain((x, labels)).batch(4).repeat(5))
    for _ in range(2):
        given = [label for _, batch in attached for label in batch.to_list()]
        assert given == labels.to_list() * 5


def test_the_data_is_not_held_many_times(tmp_path):
    """TensorFlow copies what a data set holds as often as it occurs in another one."""
    x = np.random.default_rng(0).normal(size=(1000, 1000)).astype("float32")
    soft = kd.SoftTargets.build(triple, x, tmp_path / "s", outputs="values", verbose=0)
    attached = soft.attach(plain(x).batch(100), batched=True)
    held = len(attached._as_serialized_graph().numpy())
    assert held < 2.1 * x.nbytes, "once where all is compared, once where a sample is"


MOVED = "The data has changed since the last pass over it"


@pytest.fixture
def changing(examples):
    """A data set in order that gives other examples at some places from its third reading on."""
    readings = tf.Variable(0)

    def make(places):
        def later(one, label):
            first = tf.cast(label == 0, tf.int32)
            now = readings.assign_add(first) > 3  # the first reading is the look at its first batch
            changed = tf.reduce_any(label == tf.constant(places, tf.int64))
            return one + tf.cast(changed & now, tf.float32), label

        return plain(examples).map(later).batch(20)

    return make


def test_after_a_checked_pass_in_order_a_sample_is_checked(soft, examples, changing):
    attached = soft.attach(changing([*range(20, 40)]))
    for _ in range(2):
        assert seen(attached, examples) == list(range(COUNT))
    with pytest.raises(tf.errors.OpError, match=MOVED):
        list(attached)


def test_the_sample_is_one_in_sixteen_at_places_that_change(soft, examples, changing):
    attached = soft.attach(changing([50]))
    for _ in range(2):
        assert seen(attached, examples) == list(range(COUNT))
    passed = 0
    with pytest.raises(tf.errors.OpError, match=MOVED):
        while passed <= EVERY:
            list(attached)
            passed += 1
    assert passed > 0, "not every example is checked after the first pass"


def test_a_batch_whose_parts_are_not_all_as_long_is_checked_to_its_end(soft, examples):
    """Of 50 examples 3 at a time are checked, at 17 places; the last place is inside the batch."""
    attached = soft.attach(plain(examples).batch(50, drop_remainder=True))
    for _ in range(20):
        assert seen(attached, examples) == list(range(COUNT))


def test_one_example_of_each_batch_is_checked_in_small_batches(soft, examples):
    """Two batches that change places after a pass in order are refused, whatever the sample."""
    for swapped_from in range(4):
        reading = tf.Variable(0)

        def order(number, reading=reading, last=2 + swapped_from):
            reading.assign_add(tf.cast(number == 0, tf.int32))
            moved = (reading > last) & ((number == 2) | (number == 5))
            place = tf.where(moved, 7 - number, number) * 4
            return tf.gather(examples[0], place + tf.range(4, dtype="int64"))

        attached = soft.attach(tf.data.Dataset.range(COUNT // 4).map(order), batched=True)
        for _ in range(1 + swapped_from):
            for (batch,) in attached.as_numpy_iterator():
                np.testing.assert_array_equal(batch.teacher["outputs"], triple(batch.inputs))
        with pytest.raises(tf.errors.OpError, match=MOVED):
            list(attached)


def test_batches_that_change_their_size_after_a_pass_in_order_are_refused(soft, examples):
    reading = tf.Variable(0)

    def shorter(number):
        reading.assign_add(tf.cast(number == 0, tf.int32))
        here = tf.range(4 - tf.cast(reading > 2, tf.int64) * tf.cast(number == 3, tf.int64))
        return tf.gather(examples[0], number * 4 + here)

    attached = soft.attach(tf.data.Dataset.range(COUNT // 4).map(shorter), batched=True)
    list(attached)
    with pytest.raises(tf.errors.OpError, match=MOVED):
        list(attached)


UNORDERED = {
    "a map": lambda ds, one: ds.map(one, num_parallel_calls=2, deterministic=False).batch(4),
    "batches": lambda ds, one: ds.batch(4, num_parallel_calls=2, deterministic=False).map(one),
    "an option": lambda ds, one: ds.batch(4).map(one).with_options(_free_order()).prefetch(1),
}


def _free_order() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = False
    return options


@pytest.mark.parametrize("kind", UNORDERED)
def test_data_that_may_change_its_order_is_always_looked_up(soft, examples, looked_up, kind):
    attached = soft.attach(UNORDERED[kind](plain(examples), lambda x, y: (x, y)))
    del looked_up[:]
    for _ in range(3):
        assert sorted(seen(attached, examples)) == list(range(COUNT))
    assert sum(looked_up) == 3 * COUNT


def test_a_reader_beside_another_one_counts_for_itself(soft, examples, looked_up):
    """One example is out of place; a second reader's end does not make the first one's in order."""
    order = np.r_[0:22, 23, 22, 24:COUNT]
    attached = soft.attach(plain((examples[0][order], examples[1][order])).batch(4))
    one = iter(attached)
    for _ in range(8):
        next(one)
    assert seen(attached, examples) == order.tolist()
    assert len(list(one)) == COUNT // 4 - 8
    del looked_up[:]
    for _ in range(EVERY):
        assert seen(attached, examples) == order.tolist()
    assert len(looked_up) == EVERY  # the batch with it, in each pass


def test_a_store_of_fewer_examples_than_a_batch(soft, examples, tmp_path):
    few = examples[0][:3], examples[1][:3]
    small = kd.SoftTargets.build(
        triple, few[0], tmp_path / "s", dtype="float32", outputs="values", verbose=0
    )
    for data in (plain(few).repeat(7), plain(few).repeat()):
        attached = small.attach(data.batch(8, drop_remainder=True))
        assert seen(attached.take(2), few) == [0, 1, 2] * 5 + [0]


def test_equal_examples_share_an_answer(tmp_path):
    x = np.repeat(np.arange(5, dtype="float32")[:, None], 4, axis=0)
    soft = kd.SoftTargets.build(triple, x, tmp_path / "s", outputs="values", verbose=0)
    attached = soft.attach(tf.data.Dataset.from_tensor_slices((x, x)).shuffle(20, seed=1).batch(6))
    for batch, _ in attached:
        np.testing.assert_array_equal(
            batch.teacher["outputs"], triple(batch.inputs.numpy()).astype("float16")
        )


def test_two_readers_of_one_attached_data_set_do_not_disturb_each_other(soft, examples):
    attached = soft.attach(plain(examples).batch(8))
    found, threads = [], []
    for _ in range(3):
        threads.append(threading.Thread(target=lambda: found.append(seen(attached, examples))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert found == [list(range(COUNT))] * 3


def test_a_flipped_byte_is_found_by_reading(examples, tmp_path):
    soft = kd.SoftTargets.build(triple, examples[0], tmp_path / "s", outputs="values", verbose=0)
    (shard,) = (tmp_path / "s").glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    del soft
    gc.collect()
    shard.write_bytes(content)
    opened = kd.SoftTargets(tmp_path / "s")
    with pytest.raises(ValueError, match="is damaged"):
        opened.attach(plain(examples).batch(8))


def test_inputs_of_several_parts_and_words_are_found(tmp_path):
    rng = np.random.default_rng(0)
    x = {
        "image": rng.normal(size=(12, 2, 2)).astype("float32"),
        "word": np.array([*"abcdefghijkl"]),
    }

    def teacher(inputs):
        return inputs["image"].sum((1, 2))[:, None]

    data = tf.data.Dataset.from_tensor_slices((x, np.arange(12)))
    soft = kd.SoftTargets.build(
        teacher, data, tmp_path / "s", outputs="values", dtype="float32", verbose=0
    )
    for batch, y in soft.attach(data.shuffle(12, seed=1).batch(5)):
        np.testing.assert_allclose(
            batch.teacher["outputs"][:, 0], x["image"][y.numpy()].sum((1, 2)), rtol=1e-6
        )


def test_views_of_a_replayable_augmentation_find_their_answers(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 6, 6, 1)).astype("uint8")
    data = tf.data.Dataset.from_tensor_slices((images, np.arange(10))).batch(4)
    moved = kd.augmentation.chain(kd.augmentation.flips(), kd.augmentation.shifts(1))
    views = data.apply(kd.ReplayableAugmentation(moved, views=3, seed=1))

    def total(x):
        return x.reshape(len(x), -1).astype("float32") @ np.arange(36, dtype="float32")[:, None]

    soft = kd.SoftTargets.build(
        total, views, tmp_path / "s", outputs="values", dtype="float32", verbose=0
    )
    assert len(soft) == 30
    again = data.apply(kd.ReplayableAugmentation(moved, views=3, seed=1))
    for batch, _ in soft.attach(again):
        np.testing.assert_allclose(batch.teacher["outputs"], total(batch.inputs.numpy()))
    other = data.apply(kd.ReplayableAugmentation(moved, views=3, seed=2))
    with pytest.raises(tf.errors.OpError, match=r"no soft targets[\s\S]*ReplayableAugmentation"):
        list(soft.attach(other))
