"""FlowOfSolution: the flow matrices in NumPy, pooling, connector, laws and words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses.flow_of_solution import FlowOfSolution, flow_matrix
from tests import references


def paper_matrix(first, second):
    """G_ij = Σ over s, t of F¹_stᵢ·F²_stⱼ / (h·w), one example: equation 1, written out."""
    left, right = (references.float64(f).reshape(-1, f.shape[-1]) for f in (first, second))
    products = [np.outer(a, b) for a, b in zip(left, right, strict=True)]
    return np.sum(products, axis=0) / len(products)


def rows(teacher, student):
    """Equation 2 with λ = 1 over the number of entries of a matrix, one number an example."""
    values = []
    for index in range(len(teacher[0])):
        total = 0.0
        for k in range(len(teacher) - 1):
            pair = [paper_matrix(side[k][index], side[k + 1][index]) for side in (teacher, student)]
            total += np.linalg.norm(pair[0] - pair[1]) ** 2 / pair[0].size
        values.append(total)
    return np.array(values)


def layers(rng, *shapes):
    return [rng.normal(size=shape) for shape in shapes]


def value_of(teacher, student, **kwargs):
    return float(FlowOfSolution().compute_loss(teacher, student, **kwargs))


KINDS = [
    pytest.param((3, 4, 2), id="maps"),
    pytest.param((3, 5), id="sequences"),
    pytest.param((3, 2, 3, 2), id="volumes"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(3, 5), (3, 5, 2), (2, 2, 3, 4)], ids=str)
def test_it_is_the_papers_equations(rng, kind, widths):
    teacher, student = (layers(rng, *[(*kind, w) for w in widths]) for _ in range(2))
    assert value_of(teacher, student) == pytest.approx(rows(teacher, student).mean(), rel=1e-5)


def test_a_flow_matrix_is_equation_1(rng):
    first, second = layers(rng, (2, 3, 4, 5), (2, 3, 4, 6))
    matrix = flow_matrix(tf.constant(first, "float32"), tf.constant(second, "float32"))
    assert matrix.shape == (2, 5, 6)
    expected = [paper_matrix(*pair) for pair in zip(first, second, strict=True)]
    np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-6)


def test_the_paper_has_the_sum_of_squares_of_a_matrix(rng):
    teacher, student = (layers(rng, (2, 3, 3, 4), (2, 3, 3, 5)) for _ in range(2))
    norms = [
        np.linalg.norm(paper_matrix(*t) - paper_matrix(*s)) ** 2
        for t, s in zip(zip(*teacher, strict=True), zip(*student, strict=True), strict=True)
    ]
    assert value_of(teacher, student) == pytest.approx(np.mean(norms) / 20, rel=1e-5)


def test_each_pair_of_neighbours_adds_its_own(rng):
    teacher, student = (layers(rng, *[(2, 3, 3, w) for w in (3, 4, 2)]) for _ in range(2))
    parts = [value_of(teacher[k : k + 2], student[k : k + 2]) for k in range(2)]
    assert value_of(teacher, student) == pytest.approx(sum(parts), rel=1e-5)


def test_its_gradient_is_that_of_the_formula(rng):
    teacher, student = (layers(rng, (2, 3, 2, 3), (2, 3, 2, 4)) for _ in range(2))
    for place in (0, 1):
        variables = [tf.Variable(layer, dtype="float32") for layer in student]
        with tf.GradientTape() as tape:
            value = FlowOfSolution().compute_loss(teacher, variables)

        def changed(z, place=place):
            return rows(teacher, [z if k == place else s for k, s in enumerate(student)]).mean()

        np.testing.assert_allclose(
            tape.gradient(value, variables[place]),
            references.gradient(changed, student[place]),
            rtol=1e-3,
            atol=1e-6,
        )


def test_its_laws(rng):
    teacher = layers(rng, (3, 4, 4, 3), (3, 4, 4, 5))
    assert value_of(teacher, teacher) == 0.0
    assert value_of(teacher, [-layer for layer in teacher]) == 0.0
    moved = [layer[:, ::-1] for layer in teacher]  # where it happens does not matter
    assert value_of(teacher, moved) == pytest.approx(0.0, abs=1e-10)
    nothing = [np.zeros_like(layer) for layer in teacher]
    squares = [np.mean(paper_matrix(*pair) ** 2) for pair in zip(*teacher, strict=True)]
    assert value_of(teacher, nothing) == pytest.approx(np.mean(squares), rel=1e-5)


def test_sizes_of_teacher_and_student_may_differ(rng):
    teacher = layers(rng, (2, 8, 8, 3), (2, 8, 8, 4))
    student = layers(rng, (2, 4, 2, 3), (2, 4, 2, 4))
    assert value_of(teacher, student) == pytest.approx(rows(teacher, student).mean(), rel=1e-5)


def pooled(values, height, width):
    """Largest value of each block of a map that the size divides."""
    batch, high, wide, channels = values.shape
    blocks = values.reshape(batch, height, high // height, width, wide // width, channels)
    return blocks.max(axis=(2, 4))


@pytest.mark.parametrize("first", [(8, 8), (8, 4), (4, 8), (4, 4)], ids=str)
@pytest.mark.parametrize("larger", [0, 1], ids=["first", "second"])
def test_the_larger_of_two_layers_is_max_pooled(rng, first, larger):
    shapes = [(2, *first, 3), (2, 4, 4, 5)]
    teacher, student = (layers(rng, *(shapes[::-1] if larger else shapes)) for _ in range(2))
    sides = [[pooled(layer, 4, 4) for layer in side] for side in (teacher, student)]
    assert value_of(teacher, student) == pytest.approx(rows(*sides).mean(), rel=1e-5)


def test_height_and_width_are_pooled_each_to_the_smaller(rng):
    shapes = [(2, 6, 2, 3), (2, 3, 4, 5)]
    teacher, student = (layers(rng, *shapes) for _ in range(2))
    sides = [[pooled(layer, 3, 2) for layer in side] for side in (teacher, student)]
    assert value_of(teacher, student) == pytest.approx(rows(*sides).mean(), rel=1e-5)


def test_windows_cover_every_position_where_the_size_does_not_divide():
    sequence = np.array([0, 5, 1, 2, 9, 3, 4], "float32").reshape(1, 7, 1)
    ones = np.ones((1, 3, 1), "float32")
    # of 7 positions the 3 windows are 0-2, 2-4 and 4-6 (as adaptive pooling has them)
    assert flow_matrix(sequence, ones).numpy() == pytest.approx((5 + 9 + 9) / 3)
    two = np.ones((1, 2, 1), "float32")  # 0-3 and 3-6
    assert flow_matrix(sequence, two).numpy() == pytest.approx((5 + 9) / 2)


@pytest.mark.parametrize("widths", [(None, None), (4, 4), (8, 4)], ids=str)
def test_unknown_sizes_are_taken_as_equal(rng, widths):
    shapes = [(2, 4, widths[0] or 4, 3), (2, 4, 4, 5)]
    teacher, student = (layers(rng, *shapes) for _ in range(2))
    spec = [tf.TensorSpec((None, None, *pair)) for pair in zip(widths, (3, 5), strict=True)]
    compiled = tf.function(FlowOfSolution().compute_loss, input_signature=[spec, spec])
    given = [[tf.constant(layer, "float32") for layer in side] for side in (teacher, student)]
    assert float(compiled(*given)) == pytest.approx(value_of(teacher, student), rel=1e-6)


def test_weights_are_one_for_each_example(rng):
    teacher, student = (layers(rng, (3, 4, 2, 3), (3, 4, 2, 2)) for _ in range(2))
    weight = np.array([0.0, 1.0, 2.5])
    expected = (weight * rows(teacher, student)).sum() / 3
    assert value_of(teacher, student, sample_weight=weight) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("extreme", [0.0, 1.0, 1e4, -1e4])
def test_constant_features_have_finite_gradients(extreme):
    teacher = [np.full((2, 2, 2, 3), 1e4)] * 2
    variables = [tf.Variable(np.full((2, 2, 2, 3), extreme, "float32")) for _ in range(2)]
    with tf.GradientTape() as tape:
        value = FlowOfSolution().compute_loss(teacher, variables)
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in tape.gradient(value, variables))


# --- the connector --------------------------------------------------------------------------------


def test_channels_that_differ_are_mapped_by_a_trained_convolution(rng):
    teacher = layers(rng, (2, 4, 4, 3), (2, 2, 2, 6))
    student = layers(rng, (2, 4, 4, 3), (2, 8, 8, 2))
    shapes = [[(None, *layer.shape[1:]) for layer in side] for side in (teacher, student)]
    connector = FlowOfSolution().connector(*shapes)
    kernel, bias = connector.get_weights()  # only the second layer's channels differ
    assert (kernel.shape, bias.shape) == ((2, 6), (6,))
    sides = [[tf.constant(layer, "float32") for layer in side] for side in (teacher, student)]
    with tf.GradientTape() as tape:
        same, mapped = connector(*sides)
        value = FlowOfSolution().compute_loss(same, mapped)
    np.testing.assert_array_equal(same[1], sides[0][1])
    np.testing.assert_array_equal(mapped[0], sides[1][0])
    np.testing.assert_allclose(mapped[1], student[1] @ kernel + bias, rtol=1e-4, atol=1e-5)
    gradients = tape.gradient(value, connector.trainable_weights)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


def test_equal_channels_need_no_connector():
    shapes = [(None, 4, 4, 3), (None, 2, 2, 6)]
    assert FlowOfSolution().connector(shapes, shapes) is None
    other_sizes = [(None, 8, 8, 3), (None, 8, 8, 6)]
    assert FlowOfSolution().connector(shapes, other_sizes) is None
    assert FlowOfSolution(["a", "b"], ["c", "d"]).get_config() == {
        "teacher_layer_name": ["a", "b"],
        "student_layer_name": ["c", "d"],
        "name": "flow_of_solution",
    }


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        (2, 4, 4, 3),
        [(2, 4, 4, 3)],
        {"a": (2, 4, 4, 3), "b": (2, 4, 4, 3)},
    ],
    ids=["tensor", "one", "dict"],
)
def test_fewer_than_two_layers_are_refused(given):
    words = r"compares 2 layers or more of each model[\s\S]*teacher_layer_name="
    pair = [(2, 4, 4, 3), (2, 4, 4, 3)]
    for sides in ((given, given), (pair, given), (given, pair)):
        for ask in (FlowOfSolution().check_shapes, FlowOfSolution().connector):
            with pytest.raises(ValueError, match=words):
                ask(*sides)
    assert FlowOfSolution.layers == 2


def test_layers_that_do_not_pair_up_are_refused():
    words = r"cannot pair the layers of the two models[\s\S]*student_layer_name="
    two, three = [(2, 4, 4, 3)] * 2, [(2, 4, 4, 3)] * 3
    for ask in (FlowOfSolution().check_shapes, FlowOfSolution().connector):
        with pytest.raises(ValueError, match=words):
            ask(two, three)


def test_layers_of_different_kinds_are_refused():
    maps, mixed = [(2, 4, 4, 3)] * 2, [(2, 4, 4, 3), (2, 4, 3)]
    for sides in ((maps, mixed), (mixed, maps)):
        with pytest.raises(ValueError, match=r"differ in their number of axes[\s\S]*same kind"):
            FlowOfSolution().check_shapes(*sides)


@pytest.mark.parametrize(
    "student",
    [[(2, 4, 4, 3), (2, 4, 4, 4)], [(2, 4, 4, 1), (2, 4, 4, 5)], [(1, 4, 4, 3), (1, 4, 4, 5)]],
    ids=["second", "first", "examples"],
)
def test_channels_or_examples_that_differ_are_refused_and_never_broadcast(student):
    teacher = [np.ones((2, 4, 4, 3)), np.ones((2, 4, 4, 5))]
    words = r"the shapes of teacher and student differ[\s\S]*train with kd.Distiller"
    with pytest.raises(ValueError, match=words):
        FlowOfSolution().compute_loss(teacher, [np.ones(shape) for shape in student])


@pytest.mark.parametrize("second", [(8, 4), (8,)], ids=str)
def test_vectors_are_refused(second):
    words = r"a vector has no positions[\s\S]*before the pooling and the dense layers"
    vectors, maps = [(8, 4, 4, 3), second], [(8, 4, 4, 3)] * 2
    for sides in ((vectors, maps), (maps, vectors)):
        for ask in (FlowOfSolution().check_shapes, FlowOfSolution().connector):
            with pytest.raises(ValueError, match=words):
                ask(*sides)


def test_padded_sequences_are_refused_as_padding_would_count():
    student = [tf.ones((2, 5, 3)), tf.ones((2, 5, 4))]
    student[0]._keras_mask = tf.ones((2, 5), "bool")
    with pytest.raises(ValueError, match="the padding of these sequences would change the loss"):
        FlowOfSolution().compute_loss([np.ones((2, 5, 3)), np.ones((2, 5, 4))], student)


def test_padding_of_any_layer_is_refused(rng):
    first, second = (tf.constant(rng.normal(size=(2, 4, 3)), "float32") for _ in range(2))
    second._keras_mask = tf.constant([[True, True, False, False], [True] * 4])
    with pytest.raises(ValueError, match="the padding of these sequences would change the loss"):
        FlowOfSolution().compute_loss([first, second], [first, second])
