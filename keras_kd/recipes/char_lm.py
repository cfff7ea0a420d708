"""Text, character by character: an LSTM teaches a GRU of under a third of its size.

    keras-kd run char_lm

The text is what `help("topics")` shows, which every Python brings along: English with grammar and
code. A network reads windows of 48 characters and says at each of them which character comes next,
one of 80. Each character is a decision of its own: the distillation loss, accuracy, agreement and
KL are means over characters. The table also shows the bits for each character; the perplexity is 2
to the power of them.

Expected result: the README's table of results, in about three minutes on two cores;
`--smoke` tells the same story in seconds.

The settings were chosen on the validation block. The student learns from 4,096 windows, as the
teacher does, and has not the room to learn them by heart: what it gains is small. At temperatures
above 1, which soften away what a language model is measured by, it loses.

Another version of Python has other texts, so other numbers; the fingerprint in run.json says which
text it was.

The student's file takes one window of 48 characters at a time, and answers for each character.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_kd.recipes import base

if TYPE_CHECKING:
    import keras

LENGTH, CHARACTERS = 48, 80
"""What `python_text` gives: characters in a window, and how many different ones there are."""


@dataclass(frozen=True, kw_only=True)
class CharLm(base.Recipe):
    """An LSTM of 96 units teaches a GRU of 56."""

    summary: str = "Python's help texts, character by character: an LSTM teaches a GRU"
    data: str = "python_text"
    batch_size: int = 64
    teacher_epochs: int = 20
    epochs: int = 16
    learning_rate: float = 1e-2
    teacher_learning_rate: float = 1e-2
    temperature: float = 1.0
    student_loss_weight: float = 0.5
    steps_per_execution: int = 16
    limit: int | None = 4096

    def teacher(self) -> keras.Model:
        """Build an embedding, an LSTM of 96 units, dropout, and logits for each character."""
        return _network("teacher", "LSTM", embedded=32, units=96, dropout=0.2)

    def student(self) -> keras.Model:
        """Build an embedding, a GRU of 56 units, and logits for each character."""
        return _network("student", "GRU", embedded=16, units=56)

    def measures(self) -> list[keras.metrics.Metric]:
        """Return the bits for each character: the cross-entropy in base 2."""
        import keras

        def bits(y: Any, logits: Any) -> Any:
            nats = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
            return nats / math.log(2)

        metric = keras.metrics.MeanMetricWrapper(bits, name="bits_per_character")
        metric._direction = "down"  # as Keras marks its own metrics
        return [metric]


def _network(name: str, kind: str, embedded: int, units: int, dropout: float = 0.0) -> keras.Model:
    """Build a recurrent network over windows of characters, with logits at each place."""
    import keras

    inputs = keras.Input((LENGTH,), dtype="int32", name="characters")
    x = keras.layers.Embedding(CHARACTERS, embedded, name="embedding")(inputs)
    x = getattr(keras.layers, kind)(units, return_sequences=True, name=kind.lower())(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(CHARACTERS, name="logits")(x), name=name)


RECIPE = CharLm()
