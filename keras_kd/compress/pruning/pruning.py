"""Fewer channels: a smaller network of the same form, that answers as the larger one did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_kd import checks
from keras_kd.compress.pruning.planning import Amount, Plan, Worth


def prune_channels(
    student: keras.Model,
    *,
    keep: float | None = None,
    macs: float | None = None,
    bytes: int | None = None,
    importance: str = "taylor",
    data: Any = None,
    loss: Any = None,
    batch_size: int = 64,
    examples: int = 4096,
    multiple_of: int = 1,
) -> keras.Model:
    """Remove whole channels, and build the smaller network that is left.

    Half the channels of a convolution and half of what it reads is a quarter of its work, on any
    device: the file holds smaller dense layers and nothing else. Setting weights to zero one by
    one is not offered. LiteRT computes with the zeros as with any number, so that such a file is
    no faster, whatever it says of its sparsity.

    Before it is trained again the smaller model answers as the larger one would with nothing read
    from the channels that went, up to rounding. Distil it back then: `kd.Distiller(teacher,
    smaller, …)`, with the larger model as the teacher or its own one. A `LayerNormalization` (or
    RMS, or unit) is the exception: it takes its statistics over the channels that are left.

    Channels that are added, multiplied or concatenated into one another go together, in a group;
    so do those of depthwise convolutions and normalisations with what they follow, the places of a
    channel that is flattened, and those of a layer that is called twice. Nested models are pruned
    inside. The channels of inputs and outputs are kept, and a recurrent layer's own units. A layer
    that is not known (attention, grouped convolutions, `Lambda`, a class of your own) keeps all the
    channels that it takes and makes: `pruning_report` says which, and why.

    How much is left is said in one of three ways:

    - `keep`: the share of the channels of each group, to the nearest whole one, halves up, and one
      at least. With 0.5 about a quarter of the MACs and weights are left.
    - `macs`: the largest share of the multiply-accumulates that may be left. Channels go one by one
      until it fits; with the last of them back, the budget would be passed. By `"taylor"` those of
      all groups are ranked together, each by its share of its group, s / √Σs². By the other two,
      which say nothing between layers, each group loses the same share. A tenth of each group
      stays.
    - `bytes`: the largest size of the weights in float32, 4 for each parameter; likewise.

    The ranking is not divided by what a removal saves. Of many channels that do the same each is
    worth nothing, and such a ranking takes all of them: on Fashion-MNIST's residual teacher, at
    macs=0.4, it left one channel of 128 in the last block.

    Args:
        student: a built Functional or Sequential model: a student, or a teacher. It is not changed.
        keep: from above 0 to 1.
        macs: from above 0 to 1.
        bytes: a whole number.
        importance: what a channel is worth, summed over all that belongs to it:
            `"taylor"`, (∂E/∂z)² for a gate z = 1 on the channel, which is the square of the sum of
            gradient times weight over all that reads it; the mean over batches of `data`.
            `"magnitude"`, Σ|w| of the filters that make it.
            `"batchnorm"`, |γ| of its batch normalisations, trained with an L1 penalty on them.
        data: for `"taylor"`: labelled batches, or arrays `(x, y[, sample_weight])`. The other two
            look at the weights alone, and not at it.
        loss: E, as `compile` takes it. Defaults to the loss that the model is compiled with, else
            to what the labels call for: cross-entropy, or the squared error.
        batch_size: for arrays. Defaults to 64.
        examples: how many of the data are looked at, from the first. Defaults to 4096.
        multiple_of: keep multiples of so many channels in each group, 8 for example where a
            device computes with so many at once. Defaults to 1.

    Returns:
        A new Functional model, not compiled, with the names of layers, inputs and outputs as they
        were. Equal data and weights give equal channels.

    Raises:
        ValueError: "Say in one way how much is to be left", "There is no importance …", "… needs
            data", "No channel of … can be removed", "… is a subclassed model", "… is not built",
            "… has no BatchNormalization", "… cannot be reached by removing channels", "The MACs of
            … are not known", "The layer … cannot be copied", "`keep` must be …" and the like for
            other numbers out of range.

    Reference:
        Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", section 3 (the
        form with gates); Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource
        Efficient Inference", section 2.2 (the ranking between layers); Li et al. 2017, "Pruning
        Filters for Efficient ConvNets", section 3.1; Liu et al. 2017, "Learning Efficient
        Convolutional Networks through Network Slimming".

    Example:
    ```python
    import keras, numpy as np
    import keras_kd as kd

    student = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    data = np.random.rand(32, 8, 8, 1), np.random.randint(0, 3, 32)
    smaller = kd.compress.prune_channels(student, keep=0.5, data=data)
    print(smaller.get_layer("conv").filters)  # 8
    print(kd.compress.pruning_report(student, smaller))
    ```
    """
    amount = Amount(keep, macs, bytes)
    worth = Worth(importance, data, loss, batch_size, examples)
    return Plan(student, worth, multiple_of).apply(amount)


def prune_iteratively(
    student: keras.Model,
    *,
    distil: Callable[[keras.Model], keras.Model],
    steps: int = 3,
    keep: float | None = None,
    macs: float | None = None,
    bytes: int | None = None,
    importance: str = "taylor",
    data: Any = None,
    loss: Any = None,
    batch_size: int = 64,
    examples: int = 4096,
    multiple_of: int = 1,
) -> keras.Model:
    """Remove channels in several steps, and distil the model back after each.

    A network recovers from several small losses better than from one large one, and what a channel
    is worth is found out anew each time. After step k of n what is left is

        keepᵏᐟⁿ, of what there was at first,

    so that each step takes the same share; `macs` likewise, and `bytes` between the size at first
    and the last. The channels that are left at the end are as many as `prune_channels` leaves.

    Args:
        student: a built Functional or Sequential model. It is not changed.
        distil: smaller model -> the model trained; most often a function that fits a
            `kd.Distiller` with the model as its student, and returns the model.
        steps: how many times channels go.
        keep: the share of the channels left at the end.
        macs: the share of the multiply-accumulates left at the end.
        bytes: the largest size of the weights in float32 at the end.
        importance: as for `prune_channels`.
        data: as for `prune_channels`.
        loss: as for `prune_channels`.
        batch_size: as for `prune_channels`.
        examples: as for `prune_channels`.
        multiple_of: as for `prune_channels`.

    Returns:
        What `distil` returned at last.

    Raises:
        ValueError: what `prune_channels` refuses.
        TypeError: "`distil` must be a function", "`distil` must return the trained model".

    Example:
    ```python
    import keras, numpy as np
    import keras_kd as kd

    teacher, student = [
        keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
        )
        for _ in range(2)
    ]
    data = np.random.rand(32, 4), np.random.randint(0, 3, 32)

    def distil(smaller):
        distiller = kd.Distiller(teacher, smaller, kd.LogitsDistillation(), student_loss_weight=0)
        distiller.compile("adam")
        distiller.fit(*data, epochs=1, verbose=0)
        return smaller

    smaller = kd.compress.prune_iteratively(student, distil=distil, steps=2, keep=0.25, data=data)
    print(smaller.layers[1].units)  # 4
    ```
    """
    amount, steps = Amount(keep, macs, bytes), checks.count("steps", steps)
    worth = Worth(importance, data, loss, batch_size, examples)
    if not callable(distil):
        raise checks.bad_type(
            "`distil` must be a function.",
            given=f"{distil!r:.80} ({type(distil).__name__})",
            expected="a function: smaller model -> the model trained",
            fix="def distil(smaller): distiller = kd.Distiller(teacher, smaller, …); …; "
            "return smaller.",
        )
    first: Plan | None = None
    for step in range(1, steps + 1):
        plan = Plan(student, worth, multiple_of)
        first = first or plan
        student = distil(plan.apply(amount.after(step / steps, first), first))
        if not isinstance(student, keras.Model):
            raise checks.bad_type(
                "`distil` must return the trained model.",
                given=f"{student!r:.80} ({type(student).__name__})",
                expected="a keras.Model",
                fix="end it with `return smaller`.",
            )
    return student
