"""Text: σ and accuracy as in classification, of sentences instead of images (method.md, "Tasks")."""

from __future__ import annotations

from cswap.tasks.classification import Classification


class Text(Classification):
    """Single-label classification of text. Targets are (N,) class numbers; inputs token tensors (N, 2, L)."""

    name = "text"
