"""How reward models want their pictures: resized by a differentiable operation, then normalised."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

from turbo.types import Frames

Images = Float[Tensor, "N 3 H W"]  # RGB in [0, 1]
Squares = Float[Tensor, "N 3 S S"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalise(images: Images, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    """Return (images - mean) / std, channel by channel."""
    shift, scale = (rearrange(images.new_tensor(values), "C -> C 1 1") for values in (mean, std))
    return (images - shift) / scale


def warp(images: Images, size: int) -> Squares:
    """Resize to a square, whatever the shape was (CLIPScore, PickScore)."""
    return _resize(images, size, size)


def fit(images: Images, size: int) -> Squares:
    """Resize such that the longer side becomes `size`; black bars fill the square (HPSv2)."""
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    images = _resize(images, round(scale * height), round(scale * width))
    above, left = ((size - side) // 2 for side in images.shape[-2:])
    below, right = size - images.shape[-2] - above, size - images.shape[-1] - left
    return pad(images, (left, right, above, below))


def scale_short_side(images: Images, size: int) -> Float[Tensor, "N 3 h w"]:
    """Resize such that the shorter side becomes `size` (ViCLIP, InternVideo2)."""
    height, width = images.shape[-2:]
    short = min(height, width)
    return _resize(images, size * height // short, size * width // short)


def crop_middle(images: Images) -> Squares:
    """Cut the largest square out of the middle of all images."""
    size = min(images.shape[-2:])
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def check_videos(frames: Frames, prompts: list[str], num_frames: int) -> None:
    """Refuse another number of frames than `num_frames`, or of prompts than videos.

    Raises:
        ValueError: one of the two.
    """
    if len(prompts) != len(frames) or frames.shape[1] != num_frames:
        raise ValueError(
            f"Expected {len(frames)} prompts and {num_frames} frames a video, "
            f"got {len(prompts)} and {frames.shape[1]}."
        )


def prepare_videos(frames: Frames, size: int) -> Float[Tensor, "B F 3 S S"]:
    """Scale, cut out the middle square and normalise, for ViCLIP and InternVideo2.

    The published code cuts a random square instead, which makes a reward depend on a draw.
    """
    images = rearrange(frames, "B F C H W -> (B F) C H W")
    squares = crop_middle(scale_short_side(images, size))
    pixels = normalise(squares, IMAGENET_MEAN, IMAGENET_STD)
    return rearrange(pixels, "(B F) C H W -> B F C H W", B=len(frames))


def _resize(images: Images, height: int, width: int) -> Float[Tensor, "N 3 h w"]:
    if images.shape[-2:] == (height, width):
        return images
    return interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
