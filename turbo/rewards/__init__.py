"""Reward models: frames and prompts in, one differentiable number per video out."""

from turbo.rewards.feedback import Feedback, Rewards, reward_clean
from turbo.rewards.image_text import ImageTextReward
from turbo.rewards.video_text import VideoTextReward

__all__ = ["Feedback", "ImageTextReward", "Rewards", "VideoTextReward", "reward_clean"]
