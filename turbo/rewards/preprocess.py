"""Image preprocessing of the reward models: differentiable resizing, cropping, normalisation."""

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
    """Return (images - mean) / std, per channel."""
    shift, scale = (rearrange(images.new_tensor(values), "C -> C 1 1") for values in (mean, std))
    return (images - shift) / scale


def stretch(images: Images, size: int) -> Squares:
    """Resize to a square, ignoring the aspect ratio (CLIPScore, PickScore)."""
    return _resize(images, size, size)


def letterbox(images: Images, size: int) -> Squares:
    """Resize the longer side to `size`, and pad with black to a square (HPSv2)."""
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    images = _resize(images, round(scale * height), round(scale * width))
    above, left = ((size - side) // 2 for side in images.shape[-2:])
    below, right = size - images.shape[-2] - above, size - images.shape[-1] - left
    return pad(images, (left, right, above, below))


def scale_short_side(images: Images, size: int) -> Float[Tensor, "N 3 h w"]:
    """Resize the shorter side to `size`, keeping the aspect ratio (ViCLIP, InternVideo2)."""
    height, width = images.shape[-2:]
    short = min(height, width)
    return _resize(images, size * height // short, size * width // short)


def center_crop(images: Images) -> Squares:
    """Crop the largest centred square; half a pixel is rounded to even, as by torchvision."""
    size = min(images.shape[-2:])
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def check_videos(frames: Frames, prompts: list[str], num_frames: int) -> None:
    """Check the number of frames, and that there is one prompt per video.

    Raises:
        ValueError: either is wrong.
    """
    if len(prompts) != len(frames) or frames.shape[1] != num_frames:
        raise ValueError(
            f"Expected {len(frames)} prompts and {num_frames} frames a video, "
            f"got {len(prompts)} and {frames.shape[1]}."
        )


def prepare_videos(frames: Frames, size: int) -> Float[Tensor, "B F 3 S S"]:
    """Resize, crop and normalise frames for ViCLIP and InternVideo2.

    The published code crops a random square instead: see `feedback.draw_squares`.
    """
    images = rearrange(frames, "B F C H W -> (B F) C H W")
    squares = center_crop(scale_short_side(images, size))
    pixels = normalise(squares, IMAGENET_MEAN, IMAGENET_STD)
    return rearrange(pixels, "(B F) C H W -> B F C H W", B=len(frames))


def _resize(images: Images, height: int, width: int) -> Float[Tensor, "N 3 h w"]:
    if images.shape[-2:] == (height, width):
        return images
    return interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
