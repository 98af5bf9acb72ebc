"""Compilation of the blocks that a network repeats, once for each shape."""

import torch
from einops import rearrange
from torch import nn

# The layers that make up both networks. A network repeats each of them many times, so compiling
# them separately takes far less time than compiling the whole. Between videos (prompt, seed, steps,
# guidance) only the values of their tensors change, so nothing is compiled again.
BLOCKS = (
    "BasicTransformerBlock",
    "RecomputedConv",
    "RecomputedResnet",
    "ResnetBlock2D",  # of the VAE
    "SkipOneFrameConv",
    "WanTransformerBlock",
)
SHAPES = 64  # upper bound on the shapes of one block in any network here


def compile_blocks(network: nn.Module, *, backend: str = "inductor") -> None:
    """Let torch compile the repeated blocks of a network at their first call, in place.

    Each shape gets its own kernels, which are faster than kernels for all shapes.
    """
    # Torch stops compiling a function after this number of shapes; its default is 8.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    # Traced into, einops would make its table of array types a guard: the first array of a new type
    # anywhere in the process, such as the pixels of a video, would compile the blocks again.
    torch.compiler.allow_in_graph(rearrange)
    for module in network.modules():
        if type(module).__name__ in BLOCKS:
            module.compile(backend=backend, dynamic=False, fullgraph=True)
