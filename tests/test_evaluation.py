"""compare() against NumPy, for every kind of task; one pass; the errors' words."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd


def affine(width: int, classes: int, activation: str | None = None) -> keras.Model:
    layers = [keras.layers.Dense(classes, activation=activation)]
    return keras.Sequential([keras.Input((width,)), *layers])


def logits_of(model: keras.Model, x: np.ndarray) -> np.ndarray:
    kernel, bias = model.layers[-1].get_weights()
    return x.astype("float64") @ kernel.astype("float64") + bias


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def guo(confidence: np.ndarray, hit: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, equation 3, bin by bin."""
    error = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return error


def kl(t: np.ndarray, s: np.ndarray) -> np.ndarray:
    return (t * (np.log(t) - np.log(s))).sum(-1)


@pytest.fixture
def three(rng: np.random.Generator) -> tuple[keras.Model, keras.Model, keras.Model]:
    return affine(4, 3), affine(4, 3), affine(4, 3)


def test_classification_is_what_numpy_says(three, rng) -> None:
    teacher, alone, student = three
    x, y = rng.normal(size=(50, 4)).astype("float32"), rng.integers(0, 3, 50)
    result = kd.compare(
        teacher=teacher,
        students={"alone": alone, "distilled": student},
        data=(x, y),
        batch_size=16,
    )
    t = softmax(logits_of(teacher, x))
    assert list(result.rows) == ["teacher", "alone", "distilled"]
    assert result.metric == "accuracy"
    assert result.examples == 50
    for name, model in {"teacher": teacher, "alone": alone, "distilled": student}.items():
        p = softmax(logits_of(model, x))
        row = result[name]
        assert row["parameters"] == 15
        assert row["accuracy"] == pytest.approx(np.mean(p.argmax(-1) == y), abs=1e-6)
        expected = guo(p.max(-1), p.argmax(-1) == y)
        assert row["calibration_error"] == pytest.approx(expected, abs=1e-5)
        if name == "teacher":
            assert "agreement" not in row
            assert "teacher_kl" not in row
            continue
        agreement = np.mean(p.argmax(-1) == t.argmax(-1))
        assert row["agreement"] == pytest.approx(agreement, abs=1e-6)
        assert row["teacher_kl"] == pytest.approx(kl(t, p).mean(), rel=1e-5)


@pytest.mark.parametrize("form", ["column", "float", "one_hot", "one_hot_int", "smoothed"])
def test_labels_in_other_forms_give_the_same_numbers(three, rng, form) -> None:
    teacher, _, student = three
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 3, 20)
    hot = np.eye(3, dtype="float32")[y]
    labels = {
        "column": y[:, None],
        "float": y.astype("float32"),
        "one_hot": hot,
        "one_hot_int": hot.astype("int64"),
        "smoothed": hot * 0.9 + 0.1 / 3,
    }[form]
    students = {"student": student}
    plain = kd.compare(teacher=teacher, students=students, data=(x, y)).to_dict()
    assert kd.compare(teacher=teacher, students=students, data=(x, labels)).to_dict() == plain


def test_tf_data_pydataset_and_arrays_give_the_same_numbers(three, rng) -> None:
    teacher, _, student = three
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 3, 20)

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int):
            return x[index * 8 : index * 8 + 8], y[index * 8 : index * 8 + 8]

    students = {"student": student}
    plain = kd.compare(teacher=teacher, students=students, data=(x, y)).to_dict()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    for data in (dataset, Batches()):
        got = kd.compare(teacher=teacher, students=students, data=data).to_dict()
        assert got["examples"] == 20
        for name, row in plain["rows"].items():
            assert got["rows"][name] == pytest.approx(row, abs=1e-5)


def test_the_data_is_read_once(three, rng) -> None:
    teacher, alone, student = three
    reads = []

    def batches():
        reads.append("opened")
        for _ in range(3):
            reads.append("batch")
            yield rng.normal(size=(4, 4)).astype("float32"), rng.integers(0, 3, 4)

    kd.compare(teacher=teacher, students={"a": alone, "b": student}, data=batches())
    assert reads == ["opened", "batch", "batch", "batch"]


def test_a_softmax_student_equals_the_same_student_with_logits(rng) -> None:
    teacher, plain, soft = affine(4, 3), affine(4, 3), affine(4, 3, "softmax")
    soft.set_weights(plain.get_weights())
    x, y = rng.normal(size=(30, 4)).astype("float32"), rng.integers(0, 3, 30)
    result = kd.compare(teacher=teacher, students={"plain": plain, "soft": soft}, data=(x, y))
    assert result["soft"] == pytest.approx(result["plain"], abs=1e-6)


def test_a_softmax_student_whose_last_activation_is_unknown_is_read_by_its_values(rng) -> None:
    class Soft(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return tf.nn.softmax(self.dense(x))

    teacher, plain, soft = affine(4, 3), affine(4, 3), Soft()
    x, y = rng.normal(size=(30, 4)).astype("float32"), rng.integers(0, 3, 30)
    soft(x)
    soft.set_weights(plain.get_weights())
    result = kd.compare(teacher=teacher, students={"plain": plain, "soft": soft}, data=(x, y))
    assert result["soft"] == pytest.approx(result["plain"], abs=1e-5)


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_binary(rng, shape, activation) -> None:
    teacher, student = affine(4, 1), affine(4, 1, activation)
    x = rng.normal(size=(40, 4)).astype("float32")
    y = rng.integers(0, 2, shape)
    result = kd.compare(teacher=teacher, students={"s": student}, data=(x, y), batch_size=16)
    t, p = sigmoid(logits_of(teacher, x))[:, 0], sigmoid(logits_of(student, x))[:, 0]
    label = y.reshape(-1) == 1
    hit = (p > 0.5) == label
    assert result.metric == "binary_accuracy"
    row = result["s"]
    assert row["binary_accuracy"] == pytest.approx(hit.mean(), abs=1e-6)
    assert row["agreement"] == pytest.approx(np.mean((p > 0.5) == (t > 0.5)), abs=1e-6)
    expected = t * np.log(t / p) + (1 - t) * np.log((1 - t) / (1 - p))
    assert row["teacher_kl"] == pytest.approx(expected.mean(), rel=1e-4)
    expected = guo(np.maximum(p, 1 - p), hit)
    assert row["calibration_error"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_multi_label(rng, dtype) -> None:
    teacher, student = affine(4, 3), affine(4, 3)
    x = rng.normal(size=(40, 4)).astype("float32")
    y = rng.integers(0, 2, (40, 3)).astype(dtype)
    y[0] = 1  # more than one label, so no class number
    result = kd.compare(teacher=teacher, students={"s": student}, data=(x, y))
    p, t = sigmoid(logits_of(student, x)), sigmoid(logits_of(teacher, x))
    hit = (p > 0.5) == (y == 1)
    row = result["s"]
    assert row["binary_accuracy"] == pytest.approx(hit.mean(), abs=1e-6)
    expected = (t * np.log(t / p) + (1 - t) * np.log((1 - t) / (1 - p))).sum(-1).mean()
    assert row["teacher_kl"] == pytest.approx(expected, rel=1e-5)
    expected = guo(np.maximum(p, 1 - p).ravel(), hit.ravel())
    assert row["calibration_error"] == pytest.approx(expected, abs=1e-5)


def test_one_hot_labels_of_sigmoids_are_labels_of_their_own(rng) -> None:
    teacher, student = affine(4, 3, "sigmoid"), affine(4, 3, "sigmoid")
    x = rng.normal(size=(20, 4)).astype("float32")
    y = np.eye(3)[rng.integers(0, 3, 20)]
    result = kd.compare(teacher=teacher, students={"s": student}, data=(x, y))
    expected = np.mean((logits_of(student, x) > 0) == (y == 1))
    assert result["s"]["binary_accuracy"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 2)])
def test_regression(rng, shape) -> None:
    width = shape[-1] if len(shape) > 1 else 1
    teacher, student = affine(4, width), affine(4, width)
    x, y = rng.normal(size=(40, 4)).astype("float32"), rng.normal(size=shape)
    result = kd.compare(teacher=teacher, students={"s": student}, data=(x, y), batch_size=16)
    t, s = logits_of(teacher, x), logits_of(student, x)
    assert result.metric == "mse"
    row = result["s"]
    assert row["mse"] == pytest.approx(np.mean((s - y.reshape(-1, width)) ** 2), rel=1e-5)
    assert row["teacher_mse"] == pytest.approx(np.mean((s - t) ** 2), rel=1e-5)
    assert set(row) == {"parameters", "mse", "teacher_mse"}


def test_regression_of_whole_numbers_is_stated_by_the_teacher(rng) -> None:
    teacher, student = affine(4, 2), affine(4, 2)
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 2, (20, 2))
    values = kd.Teacher(teacher, outputs="values")
    result = kd.compare(teacher=values, students={"s": student}, data=(x, y))
    expected = np.mean((logits_of(student, x) - y) ** 2)
    assert result["s"]["mse"] == pytest.approx(expected, rel=1e-5)


def test_regression_behind_a_sigmoid_is_measured_in_the_labels_own_space(rng) -> None:
    teacher, student = affine(4, 2, "sigmoid"), affine(4, 2, "sigmoid")
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.uniform(size=(20, 2))
    result = kd.compare(teacher=teacher, students={"s": student}, data=(x, y))
    t, s = sigmoid(logits_of(teacher, x)), sigmoid(logits_of(student, x))
    assert result["s"]["mse"] == pytest.approx(np.mean((s - y) ** 2), rel=1e-5)
    assert result["s"]["teacher_mse"] == pytest.approx(np.mean((s - t) ** 2), rel=1e-5)
    ensemble = kd.compare(teacher=[teacher, teacher], students={"s": student}, data=(x, y))
    assert ensemble["teacher"]["mse"] == pytest.approx(result["teacher"]["mse"], rel=1e-5)


@pytest.mark.parametrize("first", [np.zeros((16, 1)), np.arange(16.0).reshape(16, 1)])
@pytest.mark.parametrize("form", ["arrays", "stream"])
def test_a_first_batch_of_whole_numbers_makes_no_other_task(rng, first, form) -> None:
    teacher, student = affine(4, 1), affine(4, 1)
    x = rng.normal(size=(32, 4)).astype("float32")
    y = np.concatenate([first, rng.uniform(size=(16, 1))])
    data = (x, y) if form == "arrays" else tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    arguments = {"students": {"s": student}, "data": data, "batch_size": 16}
    if form == "stream" and not first.any():
        with pytest.raises(ValueError, match=r"labels of 'output' changed[\s\S]*0 or 1[\s\S]*fix"):
            kd.compare(teacher=teacher, **arguments)
        teacher = kd.Teacher(teacher, outputs="values")
    result = kd.compare(teacher=teacher, **arguments)
    assert result.metric == "mse"
    expected = np.mean((logits_of(student, x) - y) ** 2)
    assert result["s"]["mse"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["arrays", "stream"])
def test_a_one_hot_first_batch_makes_no_classes_of_a_multi_label_set(rng, form) -> None:
    teacher, student = affine(4, 3), affine(4, 3)
    x = rng.normal(size=(32, 4)).astype("float32")
    y = np.concatenate([np.eye(3)[rng.integers(0, 3, 16)], np.ones((16, 3))])
    if form == "stream":
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
        with pytest.raises(ValueError, match=r"changed their kind[\s\S]*one-hot row"):
            kd.compare(teacher=teacher, students={"s": student}, data=data)
        return
    result = kd.compare(teacher=teacher, students={"s": student}, data=(x, y), batch_size=16)
    expected = np.mean((logits_of(student, x) > 0) == (y == 1))
    assert result["s"]["binary_accuracy"] == pytest.approx(expected, abs=1e-6)


def test_class_numbers_that_become_fractions_are_refused(three, rng) -> None:
    teacher, _, student = three
    x = rng.normal(size=(8, 4)).astype("float32")
    y = np.array([0, 1, 2, 0, 0.5, 1, 2, 1])
    stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    with pytest.raises(ValueError, match=r"The labels of 'output' changed their kind"):
        kd.compare(teacher=teacher, students={"s": student}, data=stream)
    with pytest.raises(ValueError, match=r"The labels of 'output' do not fit"):
        kd.compare(teacher=teacher, students={"s": student}, data=(x, y))


@pytest.mark.parametrize("form", ["arrays", "stream"])
def test_labels_that_weigh_nothing_do_not_change_the_task(rng, form) -> None:
    teacher, student = affine(4, 1), affine(4, 1)
    x = rng.normal(size=(32, 4)).astype("float32")
    y, weight = rng.integers(0, 2, 32).astype("float32"), np.ones(32, "float32")
    plain = kd.compare(teacher=teacher, students={"s": student}, data=(x[:30], y[:30]))
    y[30:], weight[30:] = -1, 0
    data = (x, y, weight)
    if form == "stream":
        data = tf.data.Dataset.from_tensor_slices(data).batch(16)
    result = kd.compare(teacher=teacher, students={"s": student}, data=data, batch_size=16)
    assert result["s"] == pytest.approx(plain["s"], abs=1e-5)


def test_masked_one_hot_rows_of_zeros_do_not_change_the_task(rng) -> None:
    teacher, student = token_model(4), token_model(2)
    x = rng.integers(1, 7, (8, 5))
    y = np.eye(3)[rng.integers(0, 3, (8, 5))]
    x[5:, 3:] = 0
    y[5:, 3:] = 0
    arguments = {"teacher": teacher, "students": {"s": student}, "data": (x, y)}
    for size in (4, 8):
        result = kd.compare(**arguments, batch_size=size)
        hit = student(x).numpy().argmax(-1) == y.argmax(-1)
        assert result["s"]["accuracy"] == pytest.approx(np.mean(hit[x > 0]), abs=1e-6)


def test_a_sigmoid_beside_classes_is_measured_as_the_values_it_was_stated_to_be(rng) -> None:
    inputs = keras.Input((4,))
    teacher, student = (
        keras.Model(
            inputs,
            {
                "kind": keras.layers.Dense(3)(inputs),
                "size": keras.layers.Dense(1, activation=activation)(inputs),
            },
        )
        for activation in (None, "sigmoid")
    )
    x = rng.normal(size=(20, 4)).astype("float32")
    y = {"kind": rng.integers(0, 3, 20), "size": rng.integers(0, 2, (20, 1))}
    values = kd.Teacher(teacher, outputs={"kind": "auto", "size": "values"})
    row = kd.compare(teacher=values, students={"s": student}, data=(x, y))["s"]
    t, s = (model(x)["size"].numpy() for model in (teacher, student))
    assert row["size/mse"] == pytest.approx(np.mean((s - y["size"]) ** 2), rel=1e-5)
    assert row["size/teacher_mse"] == pytest.approx(np.mean((s - t) ** 2), rel=1e-5)


def test_outputs_without_an_axis_of_classes(rng) -> None:
    def flat() -> keras.Model:
        inputs = keras.Input((4,))
        return keras.Model(inputs, keras.ops.squeeze(keras.layers.Dense(1)(inputs), -1))

    teacher, student = flat(), flat()
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 2, 20)
    result = kd.compare(teacher=teacher, students={"s": student}, data=(x, y))
    expected = np.mean((student(x).numpy() > 0) == (y == 1))
    assert result["s"]["binary_accuracy"] == pytest.approx(expected, abs=1e-6)
    agreement = np.mean((student(x).numpy() > 0) == (teacher(x).numpy() > 0))
    assert result["s"]["agreement"] == pytest.approx(agreement, abs=1e-6)


def two_heads(form: type) -> keras.Model:
    inputs = keras.Input((4,))
    kind = keras.layers.Dense(3, name="kind")(inputs)
    size = keras.layers.Dense(1, name="size")(inputs)
    return keras.Model(inputs, {"kind": kind, "size": size} if form is dict else [kind, size])


@pytest.mark.parametrize("form", [dict, list])
@pytest.mark.parametrize("labels", [dict, tuple])
def test_several_outputs_are_measured_each(rng, form, labels) -> None:
    teacher, student = two_heads(form), two_heads(form)
    x = rng.normal(size=(20, 4)).astype("float32")
    kind, size = rng.integers(0, 3, 20), rng.normal(size=20).astype("float32")
    y = {"size": size, "kind": kind} if labels is dict else (kind, size)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    result = kd.compare(teacher=teacher, students={"s": student}, data=dataset)
    named = form is dict or labels is dict
    first, second = ("kind", "size") if named else ("output_0", "output_1")
    z = x @ student.get_layer("kind").kernel.numpy() + student.get_layer("kind").bias.numpy()
    v = x @ student.get_layer("size").kernel.numpy() + student.get_layer("size").bias.numpy()
    assert result.metric == f"{first}/accuracy"
    row = result["s"]
    assert row[f"{first}/accuracy"] == pytest.approx(np.mean(z.argmax(-1) == kind), abs=1e-6)
    assert row[f"{second}/mse"] == pytest.approx(np.mean((v[:, 0] - size) ** 2), rel=1e-4)
    assert f"{second}/agreement" not in row


def token_model(width: int, mask: bool = True) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(7, width, mask_zero=mask),
            keras.layers.Dense(3),
        ]
    )


def test_a_sequence_counts_its_real_tokens_and_padding_changes_nothing(rng) -> None:
    teacher, student = token_model(4, mask=False), token_model(2)
    x = rng.integers(1, 7, (6, 5))
    x[0, 2:] = x[3, 1:] = x[5, 4:] = 0
    y = rng.integers(0, 3, (6, 5))
    students = {"student": student}
    real = x > 0
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    result = kd.compare(teacher=teacher, students=students, data=batches_of(batches))
    t, p = softmax(teacher(x).numpy()), softmax(student(x).numpy())
    for name, q in {"teacher": t, "student": p}.items():
        expected = np.mean((q.argmax(-1) == y)[real])
        assert result[name]["accuracy"] == pytest.approx(expected, abs=1e-6)
        expected = guo(q.max(-1)[real], (q.argmax(-1) == y)[real])
        assert result[name]["calibration_error"] == pytest.approx(expected, abs=1e-5)
    assert result["student"]["teacher_kl"] == pytest.approx(kl(t, p)[real].mean(), abs=1e-6)
    padded = [
        (np.pad(x[:3], ((0, 0), (0, 4))), np.pad(y[:3], ((0, 0), (0, 4)), constant_values=-1))
    ]
    longer = kd.compare(teacher=teacher, students=students, data=batches_of([*padded, batches[1]]))
    for name in ("teacher", "student"):
        assert longer[name] == pytest.approx(result[name], abs=1e-5)


def batches_of(batches: list) -> iter:
    return iter([(tf.constant(x, "int32"), tf.constant(y, "int32")) for x, y in batches])


def test_sample_weights_weigh_every_number(three, rng) -> None:
    teacher, _, student = three
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 3, 20)
    weight = rng.integers(0, 3, 20).astype("float32")
    repeated = np.repeat(np.arange(20), weight.astype(int))
    students = {"s": student}
    weighed = kd.compare(teacher=teacher, students=students, data=(x, y, weight))
    again = kd.compare(teacher=teacher, students=students, data=(x[repeated], y[repeated]))
    assert weighed["s"] == pytest.approx(again["s"], abs=1e-5)
    assert weighed["teacher"] == pytest.approx(again["teacher"], abs=1e-5)


def test_an_ensemble_is_one_row(rng) -> None:
    a, b, student = affine(4, 3), affine(4, 3), affine(4, 3)
    x, y = rng.normal(size=(30, 4)).astype("float32"), rng.integers(0, 3, 30)
    result = kd.compare(teacher=[a, b], students={"s": student}, data=(x, y))
    t = (softmax(logits_of(a, x)) + softmax(logits_of(b, x))) / 2
    s = softmax(logits_of(student, x))
    assert result["teacher"]["parameters"] == 30
    assert result["teacher"]["accuracy"] == pytest.approx(np.mean(t.argmax(-1) == y), abs=1e-6)
    assert result["s"]["teacher_kl"] == pytest.approx(kl(t, s).mean(), rel=1e-5)


def test_a_teacher_sees_its_own_scaling(three, rng) -> None:
    teacher, _, student = three
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 3, 20)
    wrapped = kd.Teacher(teacher, preprocess=lambda x: -x)
    result = kd.compare(teacher=wrapped, students={"s": student}, data=(x, y))
    expected = np.mean(logits_of(teacher, -x).argmax(-1) == y)
    assert result["teacher"]["accuracy"] == pytest.approx(expected, abs=1e-6)


def test_nothing_moves_while_comparing(rng) -> None:
    def model() -> keras.Model:
        norm = keras.layers.BatchNormalization()
        return keras.Sequential([keras.Input((4,)), norm, keras.layers.Dense(3)])

    teacher, student = model(), model()
    before = [w.copy() for m in (teacher, student) for w in m.get_weights()]
    x, y = rng.normal(3.0, size=(20, 4)).astype("float32"), rng.integers(0, 3, 20)
    kd.compare(teacher=teacher, students={"s": student}, data=(x, y))
    after = [w for m in (teacher, student) for w in m.get_weights()]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_to_dict_is_json_and_the_table_prints(three, rng) -> None:
    teacher, alone, student = three
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 3, 20)
    result = kd.compare(
        teacher=teacher, students={"alone": alone, "distilled": student}, data=(x, y)
    )
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines] == ["parameters", "teacher", "alone", "distilled"]
    assert "–" in lines[1]  # the teacher's agreement with itself says nothing
    assert f"{result['alone']['accuracy']:.4f}" in lines[2]
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(ValueError, match=r"no row 'distiled'[\s\S]*did you mean 'distilled'"):
        result["distiled"]


def wrong(**changes) -> dict:
    x, y = np.ones((4, 4), "float32"), np.array([0, 1, 2, 0])
    return {"teacher": affine(4, 3), "students": {"s": affine(4, 3)}, "data": (x, y)} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"students": {}}, "Nobody to compare with the teacher"),
        ({"students": {"s": "student.keras"}}, "The student 's' is no model"),
        ({"students": {"teacher": affine(4, 3)}}, "A student cannot be called 'teacher'"),
        ({"students": {"s": affine(4, 5)}}, "Student 's' answers in other shapes than the teacher"),
        ({"teacher": "teacher.keras"}, "The teacher is no model"),
        ({"data": iter([])}, "There is no data to compare on"),
        ({"data": (np.ones((4, 4), "float32"),)}, "Labels are needed to compare"),
        (
            {"data": tf.data.Dataset.from_tensors((np.ones((4, 4)), np.ones(4))).repeat()},
            "The data never ends",
        ),
        (
            {"data": (np.ones((4, 4), "float32"), np.array([0, 1, 2, 3]))},
            r"A label has no class in the outputs[\s\S]*label 3, 3 classes",
        ),
        (
            {"data": (np.ones((4, 4), "float32"), np.ones((4, 2)))},
            r"The labels of 'output' do not fit what the teacher gives[\s\S]*\(4, 2\)",
        ),
        (
            {"data": (np.ones((4, 4), "float32"), {"a": np.ones(4), "b": np.ones(4)})},
            "The labels are not one for each output",
        ),
        (
            {"teacher": affine(4, 3, "sigmoid")},
            "The labels of 'output' do not fit what the teacher gives",
        ),
        ({"data": (np.full((4, 4), np.nan, "float32"), np.zeros(4))}, "is not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        kd.compare(**wrong(**changes))


def test_students_come_by_name() -> None:
    with pytest.raises(TypeError, match="`students` must be models by name"):
        kd.compare(**wrong(students=[affine(4, 3)]))
