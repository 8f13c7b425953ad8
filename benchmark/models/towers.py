"""Towers: a transformer divided into the part before its first block, its blocks, and the part after the last one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of a network.

    tensor: the name of a tensor in the network's state dict.
    rows: which rows of the tensor are the matrix, since query, key and value may share one tensor. Default: all rows.
    """

    tensor: str
    rows: slice = field(default_factory=lambda: slice(None))


@dataclass(frozen=True)
class Tower:
    """A transformer in pieces, so that a search can compute only the upper blocks again.

    The pieces use the weights that the network has when they are called.

    name: "vision" or "text".
    depth: the number of blocks. Block 0 is the lowest.
    start: start(inputs) gives the input of block 0. `inputs` are images (N, 3, H, W) or tokens (N, L).
    block: block(index, hidden) gives the output of that block for its input.
    finish: finish(inputs, hidden) gives features (N, D) and local features (N, P, D) for the input of the LAST block.
        Of texts, the local features are None. A linear head on either gives logits.
    matrices: by the type of weight ("up", "down", "query", "key", "value", "output"), the matrix of every block.
    """

    name: str
    depth: int
    start: Callable[[Tensor], Tensor]
    block: Callable[[int, Tensor], Tensor]
    finish: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
    matrices: Mapping[str, tuple[Matrix, ...]]

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (N, D) and local features (N, P, D) or None, of images (N, 3, H, W) or tokens (N, L)."""
        hidden = self.start(inputs)
        for index in range(self.depth - 1):
            hidden = self.block(index, hidden)
        return self.finish(inputs, hidden)
