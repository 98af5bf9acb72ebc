"""Reward models: differentiable scores of frames against prompts; `feedback` mixes them.

To add a published reward, write one file with its network, its reader and its `RewardCard`, and add
a line to `published.REWARDS`. `check_reward` checks that it can be used.
"""

from turbo.rewards.contract import check_reward

__all__ = ["check_reward"]
