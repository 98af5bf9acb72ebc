"""The axis letters of every signature in this package.

B videos, C latent channels, F frames, h w latent size, H W pixel size, L tokens, D features.
"""

from jaxtyping import Float, Int
from torch import Tensor

Latents = Float[Tensor, "B C F h w"]  # VAE latents, already scaled to unit variance
Frames = Float[Tensor, "B F 3 H W"]  # RGB in [0, 1]
Timesteps = Int[Tensor, " B"]  # index into the noise schedule; 0 is nearly clean
PerVideo = Float[Tensor, " B"]  # one number per video: a reward, a loss, a guidance scale
PromptEmbeds = Float[Tensor, "B L D"]  # the text encoder's output for every token
Embedding = Float[Tensor, "B D"]  # one vector per video: of the guidance scale, of the motion
