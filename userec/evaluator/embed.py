"""User embeddings of a stream of batches, as one matrix; a batch whose histories are all known is not encoded again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scipy import sparse

from userec.batch import Batch
from userec.encoder.contract import Encoder
from userec.errors import DivergedError

BUDGET = 1 << 24
"""Numbers of a batch's embeddings held dense at once (64 MB in float32)."""

WIDE = 4096
"""From this width on embeddings are kept sparse where less than a tenth of them is not zero (bags of a large catalogue)."""

Matrix = Any
"""np.ndarray or scipy.sparse.csr_array, [N, D]: both know `@`, rows by index, and `.shape`."""


class Embedder:
    """The `user` embedding of an encoder that offers EMBED_USER. A history is known by its user and end.

    Histories that differ in what is asked (`asked.time`) or in where they begin (pieces) need embedders of their own."""

    def __init__(self, encoder: Encoder, tasks: tuple[str, ...]) -> None:
        self.encoder, self.tasks = encoder, tasks[:1]
        self.parts: list[Matrix] = []
        self.known: dict[tuple[int, int], int] = {}
        self.count = 0

    @torch.no_grad()
    def __call__(self, batches: Iterable[Batch]) -> tuple[np.ndarray, Matrix]:
        """(user row [N], embedding [N, D] float32) in the order of the rows. Raises DivergedError at what is no number."""
        keys: list[tuple[int, int]] = []
        for batch in batches:
            if batch.users is None or batch.ends is None:
                raise ValueError("a batch that does not say where its rows were cut from cannot be embedded")
            own = list(zip(batch.users.tolist(), batch.ends.tolist(), strict=True))
            keys += own
            if not all(key in self.known for key in own):
                self._add(batch, own)
        rows = np.array([self.known[key] for key in keys], np.int64)
        return np.array([user for user, _ in keys], np.int64), self._joined()[rows]

    def _joined(self) -> Matrix:
        if len(self.parts) != 1:
            dense = all(isinstance(part, np.ndarray) for part in self.parts)
            empty = [np.zeros((0, max(self.encoder.dim, 1)), np.float32)]
            self.parts = [np.concatenate(self.parts or empty) if dense else sparse.csr_array(sparse.vstack(self.parts))]
        return self.parts[0]

    def _add(self, batch: Batch, keys: list[tuple[int, int]]) -> None:
        most = max(BUDGET // max(self.encoder.dim, 1), 1)
        for start in range(0, len(keys), most):
            part = batch.rows(start, start + most) if len(keys) > most else batch
            user = self.encoder.encode(dataclasses.replace(part.history, tasks=self.tasks)).user
            if user is None:
                raise ValueError(f"encoder {self.encoder.name!r} offers EMBED_USER and gives no embedding")
            if not torch.isfinite(user).all():
                raise DivergedError(
                    f"encoder {self.encoder.name!r} gives user embeddings that are not numbers:"
                    " lower train.lr, or set train.clip_norm"
                )
            found = user.float().cpu().numpy()
            wide = found.shape[1] >= WIDE and np.count_nonzero(found) < found.size / 10
            self.parts.append(sparse.csr_array(found) if wide else found)
        for i, key in enumerate(keys):
            self.known.setdefault(key, self.count + i)
        self.count += len(keys)
