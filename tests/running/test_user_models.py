"""A person's own models: where they come from, and what is said where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from keras_kd.running import user_models


@pytest.fixture
def saved(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "import keras\n"
        "def make():\n    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "my_models"


def test_a_file_and_a_function_give_a_model(saved, module):
    assert user_models.load_model("teacher", str(saved)).count_params() == 15
    assert user_models.load_model("student", f"{module}:make").count_params() == 15


def test_a_missing_file_is_refused_before_keras_is_asked():
    with pytest.raises(ValueError, match=r"The teacher 'no\.keras' is not a file that can be read"):
        user_models.check_source("teacher", "no.keras")


@pytest.mark.parametrize("source", ["model.h5", "a b:c", "module:", ":make", "", "mod:not-a-name"])
def test_what_is_neither_file_nor_function_is_refused(source):
    with pytest.raises(ValueError, match=r"is neither a .keras file nor module:function"):
        user_models.check_source("student", source)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_file_is_refused(saved, damage):
    content = bytearray(saved.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        at = content.find(b"model.weights.h5") + 200
        content[at : at + 40] = bytes(byte ^ 255 for byte in content[at : at + 40])
    else:
        content = b"no model"
    saved.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"is damaged or no Keras file\.\n  given:.*\n  expected:"):
        user_models.load_model("teacher", str(saved))


def test_a_class_that_keras_does_not_know_is_named(tmp_path):
    import keras

    @keras.saving.register_keras_serializable(package="elsewhere")
    class Unknown(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model = Unknown()
    model(np.zeros((1, 4), "float32"))
    model.save(tmp_path / "unknown.keras")
    keras.saving.get_custom_objects().pop("elsewhere>Unknown")
    with pytest.raises(ValueError, match=r"holds a class that Keras does not know[\s\S]*--import"):
        user_models.load_model("teacher", str(tmp_path / "unknown.keras"))


def test_modules_and_functions_that_are_not_there(module):
    with pytest.raises(ValueError, match="The module 'no_such_module' cannot be imported"):
        user_models.import_module("no_such_module")
    with pytest.raises(ValueError, match="There is no function in the module 'my_models': 'maek'"):
        user_models.load_model("student", f"{module}:maek")
    with pytest.raises(TypeError, match=r"The student's function .* returned no keras.Model"):
        user_models.load_model("student", f"{module}:number")


def test_inputs_of_another_shape_are_refused_with_both(saved):
    from keras_kd.data import Split

    model = user_models.load_model("teacher", str(saved))
    split = Split(x=np.zeros((5, 7), "float32"), y=np.arange(5))
    words = r"The teacher does not take the data's inputs\.\n  given:    inputs of shape \(7,\)"
    with pytest.raises(ValueError, match=words):
        user_models.first_outputs("teacher", model, split)


def test_outputs_get_their_names(saved):
    model = user_models.load_model("teacher", str(saved))
    assert list(user_models.named(model, 1)) == [""]
    assert user_models.named(model, {"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert list(user_models.named(model, [1, 2])) == ["output_0", "output_1"]
