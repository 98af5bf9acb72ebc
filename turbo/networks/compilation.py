"""Compilation: the blocks a network repeats, each shape of them once."""

import torch
from torch import nn

# The layers that make up both networks. Compiled one by one, a network of hundreds is ready in the
# time of a dozen, and what changes between videos (prompt, seed, steps, guidance) is nothing but
# the values of their tensors.
BLOCKS = ("BasicTransformerBlock", "FilmConv", "ResnetBlock2D", "TemporalConvLayer")
SHAPES = 64  # more than any network here has of one block


def compile_blocks(network: nn.Module, *, backend: str = "inductor") -> list[nn.Module]:
    """Have torch compile the repeated blocks of a network when they are first called, in place.

    Each shape is compiled for itself, since kernels for one shape are quicker than those for all.

    Returns:
        the blocks.
    """
    # Torch gives up on a function compiled for more shapes than this; its default is 8.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    blocks = [module for module in network.modules() if type(module).__name__ in BLOCKS]
    for block in blocks:
        block.compile(backend=backend, dynamic=False, fullgraph=True)
    return blocks
