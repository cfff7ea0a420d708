"""What a teacher answers, kept on the disk: asked once, learnt from as often as one likes."""

from __future__ import annotations
