"""English and grammar that Python itself ships: the help texts of `help("topics")`, as characters.

An example is a window of 48 characters, its target the same window one character further on. The
texts belong to the Python that runs: another version has others, and the data's fingerprint says
so. Results are comparable where the fingerprints are equal.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_kd import checks
from keras_kd.data.splits import Source, Split

USAGE = "python_text"
EXAMPLE = "python_text"
USES_DATA_DIR = False

LENGTH = 48
"""Characters in a window."""

COMMON = 79
"""Characters that have a number of their own, 1 to 79; all the others share 0."""

SHARES = (0.8, 0.9)
"""Where the training block ends, and where the validation block ends and the test block begins."""


def read(argument: str, data_dir: Path | None) -> Source:
    """Cut the text into a training, a validation and a test block, and each block into windows.

    The blocks follow each other in the text, so that no window of one overlaps one of another.
    """
    del argument, data_dir
    text = collect(_topics())
    ends = [round(share * len(text)) for share in SHARES]
    blocks = text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]
    vocabulary = common_characters(blocks[0])
    train, validation, test = (windows(block, vocabulary) for block in blocks)
    return Source(
        train=train,
        validation=validation,
        test=test,
        classes=1 + len(vocabulary),
        label_names=("other", *vocabulary),
    )


def collect(topics: Mapping[str, str]) -> str:
    """Join the topics in the order of their names, each paragraph once.

    Topics repeat each other's sections; without this, the test block would hold paragraphs that
    were learned by heart. Paragraphs that differ in spaces only count as the same.

    Args:
        topics: name -> text.

    Returns:
        The paragraphs with an empty line between them.
    """
    kept: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            key = " ".join(paragraph.split())
            if key:
                kept.setdefault(key, paragraph.strip("\n"))
    return "\n\n".join(kept.values())


def common_characters(text: str, count: int = COMMON) -> tuple[str, ...]:
    """List the most common characters, the commonest first; of equals, the lower code point.

    Args:
        text: the training block: the others choose nothing.
        count: how many at most.
    """
    found = Counter(text).items()
    return tuple(c for c, _ in sorted(found, key=lambda item: (-item[1], item[0]))[:count])


def windows(text: str, vocabulary: tuple[str, ...], length: int = LENGTH) -> Split:
    """Number the characters and cut them into windows and what follows each character.

    Args:
        text: a block.
        vocabulary: characters with a number of their own: the k-th (from 0) has k + 1.
        length: characters in a window.

    Returns:
        `x` and `y` of shape (windows, length), int32 and int64; y is x moved by one character. The
        rest of the block that fills no window is left out.
    """
    numbers = {character: number for number, character in enumerate(vocabulary, start=1)}
    coded = np.array([numbers.get(character, 0) for character in text], np.int32)
    count = max(len(coded) - 1, 0) // length
    x, y = (coded[start : start + count * length] for start in (0, 1))
    return Split(x=x.reshape(count, length), y=y.reshape(count, length))


def _topics() -> Mapping[str, str]:
    """Find the texts, which a few packagings of Python leave out."""
    try:
        return importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise checks.bad_value(
            "The data set 'python_text' needs texts that this Python came without.",
            given=f"{error}",
            expected="the module pydoc_data.topics of Python's standard library",
            fix="install the whole of Python's standard library, or store a text of your own as "
            "windows of numbers with numpy.savez and load npz:FILE.",
        ) from error
