"""How a run tells where it is, to whoever listens."""

from __future__ import annotations

from collections.abc import Mapping


class Progress:
    """How a run tells where it is. This one says nothing, which suits a program or a test.

    Example:
        ```python
        from keras_kd.running.progress import Progress

        class Printing(Progress):
            def say(self, text: str) -> None:
                print(text)

        Printing().say("The teacher is trained.")
        ```
    """

    def begin(self, stages: Mapping[str, int]) -> None:
        """Hear the stages to come and the epochs of each, once, before the first."""

    def epoch(self, stage: str, done: int, logs: Mapping[str, float]) -> None:
        """Hear that so many epochs of a stage are done, and what they measured."""

    def say(self, text: str) -> None:
        """Hear one sentence for the person."""

    def end(self) -> None:
        """Hear that no more comes, after success and after an error."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
