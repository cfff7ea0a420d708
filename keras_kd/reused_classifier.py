"""SimKD, Chen et al. 2022: a student that answers through its teacher's own classifier."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from keras_kd import checks
from keras_kd.keras_models import Functional
from keras_kd.teachers import no_model

PROJECTOR = "simkd_projector"
CLASSIFIER = "teacher_classifier"
_CONVOLUTIONS = {2: layers.Dense, 3: layers.Conv1D, 4: layers.Conv2D}
_RANDOM = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
)
_BEFORE_CLASSIFIER = (
    *_RANDOM,
    layers.Flatten,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Identity,
)


def reuse_classifier(
    teacher: keras.Model,
    student: keras.Model,
    student_layer_name: str,
    *,
    teacher_layer_name: str | None = None,
    factor: int = 2,
    activation: str | None = "relu",
    name: str | None = None,
) -> keras.Model:
    """Build a student that ends in a projector and its teacher's frozen classifier.

    Much of what a teacher knows lies in its last layer. Use it where teacher and student solve the
    same task and you can spend a small projector on the student: only the feature before the
    classifier has to be learned, with one loss and no labels:

        logits = classifierₜ(P(fₛ)),    trained on ‖fₜ − P(fₛ)‖²

    P is the paper's bottleneck: 1×1, 3×3 and 1×1 convolutions, each with BatchNorm and ReLU (dense
    layers for vectors, convolutions over time for sequences). A student's feature of another size
    is averaged down where the sizes divide, else resized bilinearly (a sequence: repeated). The
    authors average the teacher's map where that is the larger one; here the student's is brought
    to its size, since the classifier may be made for it.

    The result is plain Keras: it saves, loads and exports like any model. Its weights are copies:
    of the student's layers up to `student_layer_name`, with their values, and of the teacher's
    classifier, which stays frozen (its dropout left out). Both models that you hand in stay as they
    are, and neither is trained with the result.

    Args:
        teacher: a Functional or Sequential model.
        student: a Functional or Sequential model; its layers after `student_layer_name` are not
            used.
        student_layer_name: the student's layer whose feature goes into the projector.
        teacher_layer_name: the teacher's layer whose feature is learned: what comes after it is the
            classifier. `None`: the layer before the last `Dense` and the pooling, flattening
            and dropout in front of that.
        factor: how many times the projector is narrower than the teacher's feature, a whole number.
            Defaults to the paper's 2.
        activation: activation that ends the projector. Defaults to the paper's `"relu"`; pass
            `None` where the teacher's feature has negative values.
        name: name of the new model. Defaults to `"<student>_with_<teacher>_classifier"`.

    Returns:
        A `keras.Model` from the student's inputs to the teacher's outputs. Its layer
        `"simkd_projector"` gives the feature to be trained; `"teacher_classifier"` is frozen.

    Raises:
        ValueError: "is no model", "is no Functional or Sequential model", "There is no layer",
            "is called several times, or has several outputs", "No last Dense layer was found",
            "There is nothing before the teacher's classifier", "There is no classifier after",
            "do not all come from layer", "features are not of one kind", "cannot be brought to
            the size of the teacher's", "`factor` must be a whole number".

    Reference:
        Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier": the loss
        L_SimKD and the projector; its factor and layers as in the authors' code.

    Example:
    ```python
    import keras, numpy as np
    import keras_kd as kd
    from keras import layers

    def cnn(width):
        conv = layers.Conv2D(width, 3, activation="relu", name="features")
        head = [layers.GlobalAveragePooling2D(), layers.Dense(3)]
        return keras.Sequential([keras.Input((8, 8, 1)), conv, *head])

    teacher, x = cnn(16), np.random.rand(32, 8, 8, 1)
    student = kd.reuse_classifier(teacher, cnn(4), "features")
    hint = kd.FeatureDistillation(
        teacher_layer_name="features", student_layer_name="simkd_projector"
    )
    distiller = kd.Distiller(teacher, student, hint, student_loss_weight=0.0)
    distiller.compile("adam")
    distiller.fit(x, epochs=1, verbose=0)
    print(student(x).shape)  # (32, 3)
    ```
    """
    _refuse_unknown_graph("teacher", teacher)
    _refuse_unknown_graph("student", student)
    factor = checks.count("factor", factor)
    feature, classifier = _classifier(teacher, teacher_layer_name)
    own = keras.models.clone_model(student)
    own.set_weights(student.get_weights())
    learned = _output(own, student_layer_name, "student")
    projector = _projector(tuple(learned.shape), feature, factor, activation)
    name = name or f"{student.name}_with_{teacher.name}_classifier"
    return keras.Model(_ends(own)[0], classifier(projector(learned)), name=name)


def _classifier(teacher: keras.Model, layer_name: str | None) -> tuple[tuple, keras.Model]:
    """Return the shape of the teacher's feature, and a frozen copy of all that comes after it."""
    own = keras.models.clone_model(teacher, clone_function=_steady, recursive=True)
    own.set_weights(teacher.get_weights())
    tensor = _feature(own) if layer_name is None else _output(own, layer_name, "teacher")
    if any(output is tensor for output in own.outputs):
        raise checks.bad_value(
            f"There is no classifier after layer {layer_name!r} of the teacher.",
            given=f"teacher_layer_name={layer_name!r}, whose output is the teacher's",
            expected="a layer before the classifier",
            fix="name the layer before the last pooling and Dense, or leave it out.",
        )
    try:
        after = keras.Model(tensor, _ends(own)[1])
    except ValueError as error:
        raise checks.bad_value(
            f"The outputs of the teacher do not all come from layer {layer_name!r}.",
            given=f"teacher_layer_name={layer_name!r}, and a path around it",
            expected="a layer that everything passes through",
            fix="name a later layer of the teacher.",
        ) from error
    copy = keras.models.clone_model(after)  # which leaves the teacher's other layers behind
    copy.set_weights(after.get_weights())
    classifier = keras.Model(copy.input, copy.output, name=CLASSIFIER)
    classifier.trainable = False
    return tuple(tensor.shape), classifier


def _feature(teacher: keras.Model) -> Any:
    """Return the tensor before the last Dense layer and the pooling in front of it."""
    tensor, dense = teacher.outputs[0], None
    while dense is None or isinstance(_operation(tensor), _BEFORE_CLASSIFIER):
        operation, node, _ = tensor._keras_history
        if isinstance(operation, layers.Dense):
            dense = operation
        sources = operation._inbound_nodes[node].input_tensors
        weightless = not getattr(operation, "weights", ())
        if len(teacher.outputs) > 1 or len(sources) != 1 or not (dense or weightless):
            raise checks.bad_value(
                "No last Dense layer was found at the end of the teacher.",
                given=f"{teacher.name!r}, whose last layers hold {operation.name!r}",
                expected="one output, from a Dense layer",
                fix="name the layer before the classifier: teacher_layer_name=….",
            )
        tensor = sources[0]
    if isinstance(_operation(tensor), layers.InputLayer):
        raise checks.bad_value(
            "There is nothing before the teacher's classifier that a student could learn.",
            given=f"{teacher.name!r}, whose Dense layer {dense.name!r} sees the inputs",
            expected="a layer before it",
            fix="use a deeper teacher, or kd.LogitsDistillation.",
        )
    return tensor


def _ends(model: keras.Model) -> tuple[Any, Any]:
    """Return the inputs and outputs of a model in their structure, also of one never called."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def _operation(tensor: Any) -> Any:
    return tensor._keras_history.operation


def _projector(student: tuple, teacher: tuple, factor: int, activation: str | None) -> keras.Model:
    """Make the bottleneck from the student's feature to the shape of the teacher's."""
    rank, channels = len(teacher), teacher[-1]
    if len(student) != rank or rank not in _CONVOLUTIONS:
        raise checks.bad_value(
            "The teacher's and the student's features are not of one kind.",
            given=f"teacher {teacher}, student {student}",
            expected="two maps, two sequences or two vectors",
            fix="name another student_layer_name, or the teacher's feature by teacher_layer_name.",
        )
    narrow = max(channels // factor, 1)
    parts: list[keras.layers.Layer] = _resizing(student[1:-1], teacher[1:-1])
    blocks = ((narrow, 1, "relu"), (narrow, 3, "relu"), (channels, 1, activation))
    for number, (width, kernel, ending) in enumerate(blocks, start=1):
        shape = {} if rank == 2 else {"kernel_size": kernel, "padding": "same"}
        parts += [
            _CONVOLUTIONS[rank](width, use_bias=False, name=f"linear_{number}", **shape),
            layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"norm_{number}"),
            layers.Activation(ending, name=f"activation_{number}"),
        ]
    return keras.Sequential([keras.Input(student[1:]), *parts], name=PROJECTOR)


def _resizing(size: tuple, target: tuple) -> list[keras.layers.Layer]:
    """Return the layer that brings one size to another: a mean, a repetition, or bilinear."""
    pairs = list(zip(size, target, strict=True))
    if all(wanted is None or given == wanted for given, wanted in pairs):
        return []
    known = None not in (*size, *target)
    if known and all(given % wanted == 0 for given, wanted in pairs):
        pooling = layers.AveragePooling1D if len(size) == 1 else layers.AveragePooling2D
        return [pooling(tuple(given // wanted for given, wanted in pairs), name="size")]
    if known and len(size) == 1 and target[0] % size[0] == 0:
        return [layers.UpSampling1D(target[0] // size[0], name="size")]
    if len(size) == 1 or None in target:
        raise checks.bad_value(
            "The student's feature cannot be brought to the size of the teacher's.",
            given=f"student {size}, teacher {target}",
            expected="known sizes, and lengths of which one divides the other",
            fix="name layers of the same length, or give the models inputs of fixed size.",
        )
    return [layers.Resizing(*target, interpolation="bilinear", name="size")]


def _output(model: keras.Model, layer_name: str, who: str) -> Any:
    """Return the one tensor that a layer of a model gives."""
    known = {layer.name: layer for layer in model.layers}
    if layer_name not in known:
        raise checks.unknown_name(f"layer in {who} {model.name!r} itself", layer_name, known)
    outputs = [out for node in known[layer_name]._inbound_nodes for out in node.output_tensors]
    if len(outputs) != 1:
        raise checks.bad_value(
            f"Layer {layer_name!r} of the {who} is called several times, or has several outputs.",
            given=f"{len(outputs)} outputs",
            expected="one feature",
            fix="name a layer that is called once and gives one tensor.",
        )
    return outputs[0]


def _steady(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Copy a layer of the teacher, or pass its input on where it is random in training."""
    if isinstance(layer, _RANDOM):
        return layers.Identity(name=layer.name)
    return type(layer).from_config(layer.get_config())


def _refuse_unknown_graph(who: str, model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise no_model(who, model)
    if not (isinstance(model, (Functional, keras.Sequential)) and model.built and model.inputs):
        raise checks.bad_value(
            f"The {who} is no Functional or Sequential model with known inputs.",
            given=f"{model.name!r} ({type(model).__name__})",
            expected="a model whose layers can be cut in two",
            fix="build it from keras.Input with the functional interface or keras.Sequential.",
        )
