"""Every reward keeps the contract, and rewards that break it are found."""

import pytest
import torch
from torch import nn

from training.build import brightness
from turbo.rewards import check_reward


def means(frames: torch.Tensor) -> torch.Tensor:
    return frames.mean(dim=(1, 2, 3, 4))


class Dropping(nn.Module):
    def forward(self, frames, prompts):
        return means(nn.functional.dropout(frames))


def in_place(frames, prompts):
    return means(frames.mul_(2))


def in_place_on_data(frames, prompts):
    frames.data.mul_(0.5)
    return means(frames)


def with_a_root_at_zero(frames, prompts):
    return means((frames - frames).sqrt())


BAD = {
    "detached": (lambda frames, prompts: means(frames.detach()), "no gradient"),
    "in place": (in_place, "in place"),
    "in place, unseen": (in_place_on_data, "changed the frames"),
    "centred over the batch": (lambda f, p: (means(f) + means(f).mean()) / 2, "one by one"),
    "batch mixed in the gradient": (
        lambda f, p: means(f) + (means(f) - means(f).detach()).sum(),
        "another video",
    ),
    "one score": (lambda f, p: f.mean(), "shape"),
    "a score per frame": (lambda f, p: f.mean(dim=(2, 3, 4)), "shape"),
    "first frame only": (lambda f, p: means(f[:, :1]), r"frames \[1\]"),
    "infinite gradient": (with_a_root_at_zero, "infinite or not a number"),
    "out of range": (lambda f, p: 9 * means(f), "between 0 and 1"),
    "not a number": (lambda f, p: means(f) * torch.nan, "finite"),
    "random": (Dropping(), "two scores"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_reward_that_breaks_the_contract_is_refused(name):
    reward, reason = BAD[name]

    with pytest.raises(ValueError, match=reason):
        check_reward(reward, 2, 4, 4, low=0, high=1)


def test_trainable_weights_are_refused():
    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, frames, prompts):
            return self.scale * means(frames)

    with pytest.raises(ValueError, match="requires a gradient"):
        check_reward(Trained(), 2, 4, 4)
    check_reward(Trained().requires_grad_(False), 2, 4, 4)


def test_the_trial_reward_keeps_the_contract():
    check_reward(brightness, 2, 4, 4, low=0, high=1)
