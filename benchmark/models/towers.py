"""Towers: a transformer seen as what enters its first block, its blocks, and what is made of the last one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of a network: a tensor of its state dict, or some rows of one (as where q, k, v share one)."""

    tensor: str
    rows: slice = field(default_factory=lambda: slice(None))


@dataclass(frozen=True)
class Tower:
    """A transformer in pieces, so that a search can recompute the upper blocks alone. Pieces use the current weights.

    name: "vision" or "text". depth: its number of blocks, of which block 0 is the lowest.
    start(inputs) gives what enters block 0: of images (N, 3, H, W), or of tokens (N, L).
    block(index, hidden) gives what leaves that block.
    finish(inputs, hidden), of what enters the LAST block, gives the features (N, D) and, of images, the local features
    (N, P, D), else None: both so that a linear head on them gives logits.
    matrices: by weight type ("up", "down", "query", "key", "value", "output"), that matrix of every block.
    """

    name: str
    depth: int
    start: Callable[[Tensor], Tensor]
    block: Callable[[int, Tensor], Tensor]
    finish: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
    matrices: Mapping[str, tuple[Matrix, ...]]

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (N, D) and local features (N, P, D) of inputs."""
        hidden = self.start(inputs)
        for index in range(self.depth - 1):
            hidden = self.block(index, hidden)
        return self.finish(inputs, hidden)
