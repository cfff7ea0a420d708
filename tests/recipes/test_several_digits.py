"""Segmentation, tags and detection go through the whole story of a run."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest

import keras_kd as kd
from keras_kd import recipes
from keras_kd.data import canvases
from keras_kd.run import prepared, run
from keras_kd.running import lessons

NAMES = ("multi_digit", "digit_tags", "digit_detector")
MEASURE = {
    "multi_digit": "mean_iou",
    "digit_tags": "mean_average_precision",
    "digit_detector": "mean_average_precision",
}
ACCURACY = {
    "multi_digit": "accuracy",
    "digit_tags": "binary_accuracy",
    "digit_detector": "class/accuracy",
}
OUTPUTS = {
    "multi_digit": {(32, 32, 11)},
    "digit_tags": {(10,)},
    "digit_detector": {(16, 11), (16, 4)},
}


@pytest.fixture(scope="module", autouse=True)
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvases, "COUNTS", {"train": 32, "validation": 16, "test": 16})
        yield


def small(name: str) -> recipes.Recipe:
    recipe = recipes.load(name).smoke()
    return dataclasses.replace(recipe, epochs=1, teacher_epochs=1, steps_per_execution=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_compares_exports_and_writes_it_down(name: str, tmp_path) -> None:
    path = run(small(name), out=tmp_path, name="one")
    record = json.loads((path / "run.json").read_text())
    rows = [record["teacher"]["test"]]
    rows += [record["students"][arm]["per_seed"]["0"]["test"] for arm in lessons.ARMS]
    for row in rows:
        assert 0.0 <= row[MEASURE[name]] <= 1.0
        assert 0.0 <= row[ACCURACY[name]] <= 1.0
    assert rows[1]["parameters"] * 5 < rows[0]["parameters"]
    assert record["chosen"]["by"] == "highest validation accuracy"
    assert (path / "logs" / "distilled-seed0").is_dir()
    for form in ("saved_model", "tflite"):
        verified = record["exports"][form]["certificate"]["verified"]
        assert verified["examples"] == 16
        for output, found in verified["outputs"].items():
            assert found["relative_difference"] < 1e-4
            assert found["agreement"] == (None if output == "boxes" else 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_students_give_an_answer_for_each_pixel_label_or_cell(name: str) -> None:
    recipe = small(name)
    x = prepared(recipe, None).test.x
    for network in (recipe.teacher(), recipe.student()):
        outputs = keras.tree.flatten(network(x, training=False))
        assert {tuple(output.shape[1:]) for output in outputs} == OUTPUTS[name]


def test_segmentation_is_distilled_at_every_pixel() -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 3, 4, 5, 11)).astype("float32")
    loss, by_channel = recipes.load("multi_digit").distillation_losses()
    assert by_channel.name == "channel_wise_distillation"
    flat = loss.compute_loss(teacher.reshape(-1, 11), student.reshape(-1, 11))
    np.testing.assert_allclose(loss.compute_loss(teacher, student), flat, rtol=1e-5)


def test_boxes_count_in_matched_cells_only() -> None:
    """What a network says of boxes in cells without a digit changes no loss and no measure."""
    recipe = small("digit_detector")
    x, y, weights = prepared(recipe, None).train.examples
    rng = np.random.default_rng(0)
    matched = weights["boxes"] > 0
    assert 0 < matched.mean() < 0.3
    teacher, first = (
        {
            "class": rng.normal(size=(len(x), 16, 11)).astype("float32"),
            "boxes": rng.normal(size=(len(x), 16, 4)).astype("float32"),
        }
        for _ in range(2)
    )
    noise = rng.normal(size=first["boxes"].shape).astype("float32")
    second = {**first, "boxes": np.where(matched[..., None], first["boxes"], noise)}
    moved = {**first, "boxes": first["boxes"] + 10 * matched[..., None]}
    for loss in recipe.distillation_losses():
        one, other, worse = (
            float(loss.compute_loss(teacher, outputs, y=y, sample_weight=weights))
            for outputs in (first, second, moved)
        )
        assert one == other
        assert (worse > one) is (loss.name != "logits_distillation")
    boxes = recipe.loss()["boxes"]
    values = [
        float(boxes(y["boxes"], outputs["boxes"], sample_weight=weights["boxes"]))
        for outputs in (first, second)
    ]
    assert values[0] == values[1]


def test_the_distiller_trains_both_heads_of_the_detector() -> None:
    recipe = small("digit_detector")
    dataset = prepared(recipe, None)
    teacher, student = recipe.teacher(), recipe.student()
    before = [weight.copy() for weight in student.get_weights()]
    distiller = kd.Distiller(
        teacher=lessons.stated(teacher, dataset),
        student=student,
        distillation_losses=recipe.distillation_losses(),
        distillation_loss_weights=recipe.distillation_loss_weights(),
        student_loss_weight=0.0,
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.1), loss=recipe.loss())
    distiller.fit(dataset.train.batches(16), epochs=1, verbose=0)
    paths = [weight.path for weight in student.weights]
    for path, old, new in zip(paths, before, student.get_weights(), strict=True):
        if "head/kernel" in path:
            assert not np.array_equal(old, new), path
