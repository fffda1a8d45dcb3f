"""Many fusions of the same pairs, a batch at a time: the perceptual network is slow on single images."""

from collections.abc import Callable, Iterator

from torch import Tensor

Fuse = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`Bundle.fuse`: Z_A and Z_B, (B, C, h, w), and Lambda -> C, (B, 3, S, S). Lambda = 1 gives A' and 0 gives B'."""

AT_ONCE = 32
"""Images that a batch has at most, unless there are more pairs."""


def fused_at(fuse: Fuse, z_a: Tensor, z_b: Tensor, lambdas: Tensor) -> Iterator[tuple[Tensor, int]]:
    """C at each Lambda.

    Args:
        z_a, z_b: (B, C, h, w).
        lambdas: (K, N).

    Yields:
        Images (k * B, 3, S, S), all pairs of one Lambda after those of the one before; and k.
    """
    pairs = len(z_a)
    for some in lambdas.split(max(1, AT_ONCE // pairs)):
        a, b = (z.repeat(len(some), 1, 1, 1) for z in (z_a, z_b))
        yield fuse(a, b, some.repeat_interleave(pairs, dim=0)), len(some)
