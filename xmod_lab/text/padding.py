"""Rows of token ids of different lengths as one table."""

from collections.abc import Sequence

import numpy as np


def pad(rows: Sequence[Sequence[int] | np.ndarray], pad_id: int) -> dict[str, np.ndarray]:
    """``input_ids`` and ``attention_mask``, int64 (B, S), of B rows; S is the longest.

    Padding stands on the right, and its mask is 0.
    """
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max())[None] < lengths[:, None]
    ids = np.full(mask.shape, pad_id)
    ids[mask] = np.concatenate(rows)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
