"""`kd.SoftTargets`: a teacher's answers on the disk, in the place of the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_kd import checks
from keras_kd.soft_targets import attaching, building, merging
from keras_kd.soft_targets.answering import AttachedTargets
from keras_kd.soft_targets.examples import in_words
from keras_kd.soft_targets.keeping import Keeping
from keras_kd.soft_targets.layout import DTYPES
from keras_kd.soft_targets.store import Store
from keras_kd.structures import layer_names
from keras_kd.teachers import Teacher


class Info(dict):
    """What a store holds, as a dict that prints as a list."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{key:<{width}}  {_shown(value)}" for key, value in self.items())


class SoftTargets(Teacher):
    """A teacher's answers to a data set, kept on the disk: the teacher is asked once, ever.

    Build them with `SoftTargets.build`, and open them with the folder's name. Several students
    and processes may read one store at once. Every byte is checked against its checksum before it
    is used.

    Args:
        directory: the folder of a complete store.

    Raises:
        ValueError: "There is no store …", "… is not complete", "… is damaged", "… was written by
            another version".

    Example:
    ```python
    import tempfile

    import keras
    import numpy as np
    from keras_kd.soft_targets import SoftTargets

    x = np.arange(40, dtype="float32").reshape(10, 4)
    teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with tempfile.TemporaryDirectory() as folder:
        SoftTargets.build(teacher, x, f"{folder}/soft", dtype="float32", verbose=0)
        soft = SoftTargets(f"{folder}/soft")
        print(soft.info()["examples"], soft.info()["bytes_per_row"])  # 10 20
    ```
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.store = Store.open(directory)

    @property
    def models(self) -> list[keras.Model]:
        """The Keras models inside: none, since the answers are there already."""
        return []

    @property
    def name(self) -> str:
        """The name of the teacher that was asked."""
        return self.store.manifest["build"]["teacher"]["name"]

    def fingerprint(self) -> str:
        """Return the fingerprint of the teacher that was asked."""
        return self.store.manifest["build"]["teacher"]["fingerprint"]

    @property
    def stated(self) -> list[str]:
        """What each output is, as it was found when the teacher was asked."""
        return self.store.manifest["build"]["answer"]["kinds"]

    def __call__(self, inputs: Any) -> Any:
        """Refuse plain inputs: the teacher is not here to be asked.

        Raises:
            ValueError: "Soft targets are no model".
        """
        raise checks.bad_value(
            "Soft targets are no model that could be asked.",
            given=f"a call of {self!r}",
            expected="a data set that the teacher saw",
            fix="use soft_targets.attach(data), whose batches carry the answers.",
        )

    def attached(self, paths: Iterable[str] = ()) -> AttachedTargets:  # type: ignore[override]
        """Make the form that a Distiller calls, which reads what came with the batch."""
        return AttachedTargets(self.store, paths)

    def attach(self, dataset: Any, *, batched: bool | None = None) -> Any:
        """Join the stored answers to the examples of a data set, for `fit`.

        An example is found where the order of the store has it, and else by its content, so the
        data may come in another order. Every example of a pass is checked; after a whole pass in
        the order of the store one in 16 (and one of each batch), and a change is refused. The rows
        are read from the disk by memory map, ahead of the training.

        Args:
            dataset: a `tf.data.Dataset` of x, (x, y) or (x, y, weights), batched or not; or arrays.
                Before `attach` the examples must be what the teacher saw (views of a
                `kd.ReplayableAugmentation` too); shuffle, repeat and batch before it or after. Set
                `Options.deterministic = False` before it: what may lose its order is looked up.
            batched: whether `dataset` is batched, where the shapes do not tell.

        Returns:
            A `tf.data.Dataset` of `(kd.SoftBatch(x, teacher), y[, weights])`, batched as it came;
            of `(kd.SoftBatch(x, teacher),)` without labels.

        Raises:
            ValueError: "There are no soft targets for …" (for a later batch, as the message of
                TensorFlow's error), "The data is empty", "It is not clear whether the data is
                batched".
            TypeError: "The data is no data set", "An example is no dense tensor".

        Example:
        ```python
        import tempfile

        import keras, numpy as np, tensorflow as tf
        import keras_kd as kd

        x, y = np.random.rand(32, 4).astype("float32"), np.arange(32) % 3
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        teacher, student = (
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)
        )
        with tempfile.TemporaryDirectory() as folder:
            soft = kd.SoftTargets.build(teacher, data, f"{folder}/soft", verbose=0)
            distiller = kd.Distiller(soft, student, kd.LogitsDistillation(temperature=4.0))
            distiller.compile(
                "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            )
            history = distiller.fit(soft.attach(data).shuffle(4), epochs=2, verbose=0)
        print(len(history.history["loss"]))  # 2
        ```
        """
        return attaching.attach(self.store, dataset, batched)

    def __len__(self) -> int:
        """Count the examples."""
        return self.store.count

    def __repr__(self) -> str:
        return f"SoftTargets({str(self.directory)!r}): {len(self):,} answers of {self.name!r}"

    @classmethod
    def build(
        cls,
        teacher: Any,
        dataset: Any,
        directory: str | Path,
        *,
        layers: str | Sequence[str] = (),
        top_k: int | None = None,
        temperatures: Iterable[float] = (1.0,),
        dtype: str = "float16",
        batch_size: int = 256,
        shard: tuple[int, int] | None = None,
        outputs: Any = "auto",
        activation: str = "softmax",
        fingerprint: str | None = None,
        batched: bool | None = None,
        verbose: int = 1,
    ) -> SoftTargets:
        """Ask a teacher for every example of a data set, once, and keep the answers.

        Killed at any moment, the same call goes on where it stopped (it reads the data again, and
        asks the teacher only for what is missing), to the same bytes. The memory that it takes
        does not depend on the length of the data. Logits and probabilities are kept as logits or
        log-probabilities, values as values. Where the store is complete already, the same call
        reads the data once, to see that it is the same; `SoftTargets(directory)` opens it at once.

        Args:
            teacher: a `keras.Model`, a list of them (an ensemble), a `kd.Teacher`, or any function
                of NumPy arrays, batch -> array (or a list or dict of arrays); with `layers`, batch
                -> (array, {name: array}). So a model of another framework or a remote service can
                teach.
            dataset: a `tf.data.Dataset` of x, (x, y) or (x, y, weights), batched or not, which
                gives the same examples at each reading; or arrays, x or (x, y[, weights]).
            directory: the folder of the store, new, empty, or with the same build broken off.
            layers: paths of layers of the teacher whose outputs are kept too.
            top_k: how many of the largest logits to keep, fewer than there are classes; they serve
                `LogitsDistillation` at the stored temperatures. None (the default) keeps all.
            temperatures: with `top_k`, each T whose log-sum-exp of all logits/T is kept.
            dtype: `"float16"` (which refuses numbers beyond ±65504) or `"float32"`.
            batch_size: how many examples the teacher is asked at once, whatever the batches of
                `dataset`.
            shard: `(i, n)` for the examples i, i + n, i + 2n, … alone, to share the work among n
                processes or machines; `merge` puts the parts together.
            outputs: what a model's or function's outputs are, as in `kd.Teacher`.
            activation: `"softmax"` or `"sigmoid"`, as in `kd.Teacher`.
            fingerprint: the name by which a function is known when the build goes on. Defaults to
                a hash of its answers to the first batch.
            batched: whether `dataset` is batched, where the shapes do not tell.
            verbose: 1 for a bar on a terminal, and a line at the end elsewhere; 0 for silence.

        Returns:
            The complete store, opened.

        Raises:
            ValueError: "The data does not repeat", "The data is empty", "It is not clear whether
                the data is batched", "… is not finite", "… does not fit float16", "The examples do
                not have answers of one shape", "`top_k` …", "… holds another build", "The data is
                not what the build in … began with", "Another process is building".
            TypeError: "The data is no data set", "An example is no dense tensor".
        """
        top_k = None if top_k is None else checks.count("top_k", top_k)
        keeping = Keeping(_paths(layers), top_k, _temperatures(temperatures, top_k), _dtype(dtype))
        building.build(
            teacher,
            dataset,
            Path(directory),
            keeping=keeping,
            batch_size=checks.count("batch_size", batch_size),
            shard=_shard(shard),
            outputs=outputs,
            activation=activation,
            fingerprint=fingerprint,
            batched=batched,
            verbose=bool(verbose),
        )
        return cls(directory)

    @classmethod
    def merge(
        cls, parts: Sequence[str | Path | SoftTargets], directory: str | Path, *, verbose: int = 1
    ) -> SoftTargets:
        """Put the shards of one build together in the order of the data set.

        Stores that were built without `shard`, of one teacher and the same settings, are put one
        after the other.

        Args:
            parts: the stores, or their folders, in any order where they are shards.
            directory: the folder of the new store.
            verbose: 1 for a bar or a line, 0 for silence.

        Returns:
            The new store, opened.

        Raises:
            ValueError: "There is nothing to merge", "… are not of one build", "The stores are not
                the shards of one build", "The shards were not built from one data set".
        """
        if isinstance(parts, (str, Path, SoftTargets)) or not parts:
            raise checks.bad_value(
                "There is nothing to merge.",
                given=f"{parts!r:.80}",
                expected="a list of stores or of their folders",
                fix='pass them all: SoftTargets.merge(["part0", "part1"], directory).',
            )
        stores = [
            part.store if isinstance(part, SoftTargets) else Store.open(part) for part in parts
        ]
        merging.merge(stores, Path(directory), bool(verbose))
        return cls(directory)

    def verify(self) -> Info:
        """Read every byte and compare it with its checksum.

        Returns:
            What `info` gives.

        Raises:
            ValueError: "… is damaged", with the file and the rows in it.
        """
        self.store.verify()
        return self.info()

    def info(self) -> Info:
        """Say what the store holds and where it came from, as a dict that prints as a list."""
        manifest, store = self.store.manifest, self.store
        build = manifest["build"]
        columns = {
            column.where: f"{column.dtype} {list(column.shape)}" for column in store.layout.columns
        }
        return Info(
            directory=str(self.directory),
            examples=store.count,
            bytes=store.bytes,
            bytes_per_example=round(store.bytes_per_example, 2),
            bytes_per_row=store.row_bytes,
            shards=len(store.shards),
            teacher=build["teacher"]["name"],
            teacher_fingerprint=build["teacher"]["fingerprint"],
            data_fingerprint=manifest["data"],
            inputs=[in_words(known) for known in build["inputs"]],
            outputs=build["answer"],
            columns=columns,
            layers=build["layers"],
            top_k=build["top_k"],
            temperatures=build["temperatures"],
            dtype=build["dtype"],
            batch_size=build["batch_size"],
            shard=build["shard"],
            versions=build["versions"],
        )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {part}" for key, part in value.items())
    return f"{value:,}" if type(value) is int else str(value)


def _paths(layers: str | Sequence[str]) -> tuple[str, ...]:
    names = layer_names("layers", layers if isinstance(layers, str) or len(layers) else None)
    if names is None:
        return ()
    return tuple(dict.fromkeys([names] if isinstance(names, str) else names))


def _temperatures(temperatures: Iterable[float], top_k: int | None) -> tuple[float, ...]:
    given = tuple(checks.positive("temperatures", t) for t in temperatures)
    if top_k is None and given != (1.0,):
        raise checks.bad_value(
            "`temperatures` belongs to `top_k`: all logits serve at any temperature.",
            given=f"temperatures={given} and top_k=None",
            expected="temperatures with top_k",
            fix="leave `temperatures` out, or pass top_k.",
        )
    if not given or len(set(given)) < len(given):
        raise checks.bad_value(
            "`temperatures` must be one or more, each once.",
            given=given,
            expected="numbers > 0, such as (1.0, 4.0)",
            fix="pass the temperatures that the student will learn at.",
        )
    return given


def _dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise checks.unknown_name("dtype of soft targets", dtype, DTYPES)
    return dtype


def _shard(shard: Any) -> tuple[int, int] | None:
    if shard is None:
        return None
    pair = isinstance(shard, (tuple, list)) and len(shard) == 2
    if not pair or not all(type(number) is int for number in shard) or not 0 <= shard[0] < shard[1]:
        raise checks.bad_value(
            "`shard` must be a pair (i, n).",
            given=repr(shard),
            expected="whole numbers with 0 <= i < n",
            fix="pass shard=(0, 4) for the first of four parts.",
        )
    return None if shard[1] == 1 else (shard[0], shard[1])
