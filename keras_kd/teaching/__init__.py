"""Ways of teaching beyond one teacher and one student.

- `MutualDistiller`: students that teach each other while all of them learn.
- `SelfDistiller`: a student whose teacher is the average of its own earlier weights.
- `chain`: a teacher, assistants, a student, each taught by the one before.
- `born_again`: generations of the same model, each taught by the one before.
"""

from __future__ import annotations

from keras_kd.teaching.generations import born_again, chain
from keras_kd.teaching.mutual import MutualDistiller
from keras_kd.teaching.self_distiller import SelfDistiller

__all__ = ["MutualDistiller", "SelfDistiller", "born_again", "chain"]
