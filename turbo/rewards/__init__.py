"""Reward models: differentiable scores of frames against prompts; `feedback` mixes them.

To add a published reward, write one file with its network, its reader and its `RewardCard`, and add
a line to `published.REWARDS`. `check_reward` checks that it can be used.
"""

from turbo.rewards.contract import check_reward
from turbo.rewards.feedback import MixedReward, WeightedReward, Window, mix_rewards, stride_frames
from turbo.rewards.image_text import ImageTextReward
from turbo.rewards.viclip import VideoTextReward

__all__ = [
    "ImageTextReward",
    "MixedReward",
    "VideoTextReward",
    "WeightedReward",
    "Window",
    "check_reward",
    "mix_rewards",
    "stride_frames",
]
