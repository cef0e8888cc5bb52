"""Many questions about one thing as one sequence, so that training reads the thing once.

What the prompts have in common is a trunk of tokens; each question goes on from there at its own positions and sees
nothing of the others, by a mask of ancestors in a tree of tokens. So the loss is that of separate prompts. This module
knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class QuestionTree:
    """Token sequences that begin alike, as one sequence of the tokens that they do not share.

    trunk: the tokens that all begin with. positions: theirs, rising; None is 0, 1, ... What comes behind goes on at
    `end`, None is right behind the last.
    """

    def __init__(self, trunk: Sequence[int], positions: Sequence[int] | None = None, end: int | None = None) -> None:
        self.ids, self.depth = list(trunk), list(range(len(trunk)) if positions is None else positions)
        self.end = self.depth[-1] + 1 if end is None else end
        self.parent = [i - 1 for i in range(len(trunk))]
        self.trunk = len(trunk)
        self.child: dict[tuple[int, int], int] = {}
        self.targets: dict[int, tuple[str, int]] = {}  # node: (sort, next token)

    def add(self, branch: Sequence[int], sorts: Sequence[str]) -> list[int]:
        """A continuation of the trunk; sorts: what kind of target each of its tokens is, "" for none.

        Returns where in the sequence the targets are to be said, in order.
        """
        at, said = self.trunk - 1, []
        for token, sort in zip(branch, sorts, strict=True):
            if sort:
                self.targets[at] = (sort, token)
                said.append(at)
            if (at, token) not in self.child:
                self.child[at, token] = len(self.ids)
                self.ids.append(token)
                self.depth.append(self.end if at == self.trunk - 1 else self.depth[at] + 1)
                self.parent.append(at)
            at = self.child[at, token]
        return said

    def mask(self, size: int) -> np.ndarray:
        """(size, size): whether a token sees another, which is itself or before it on its way from the root."""
        sees = np.eye(size, dtype=bool)
        sees[: self.trunk, : self.trunk] = np.tri(self.trunk, dtype=bool)
        for i in range(self.trunk, len(self.ids)):
            sees[i] |= sees[self.parent[i]]
        return sees


def batch_trees(trees: Sequence[QuestionTree], sorts: Sequence[str]) -> dict[str, Tensor]:
    """The trees as tensors (B, T), padded at the end: `input_ids`, `position_ids`, `attention_mask` (B, 1, T, T), and
    for each token `target`, the one that is to follow, with its `sort`, an index into `sorts`; -1 where there is
    none."""
    size = max(len(tree.ids) for tree in trees)
    ids, depth = np.zeros((2, len(trees), size), dtype=np.int64)
    sort, target = np.full((2, len(trees), size), -1, dtype=np.int64)
    for row, tree in enumerate(trees):
        ids[row, : len(tree.ids)], depth[row, : len(tree.ids)] = tree.ids, tree.depth
        for node, (name, token) in tree.targets.items():
            sort[row, node], target[row, node] = sorts.index(name), token
    mask = np.stack([tree.mask(size) for tree in trees])[:, None]
    arrays = {"input_ids": ids, "position_ids": depth, "attention_mask": mask, "sort": sort, "target": target}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
