"""The choices a model card makes. Free of torch, so that the table of models reads at once."""

from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]  # turbo/placement.py
Memory = Literal["full", "sliced", "offload"]  # from largest to smallest; turbo/footprint.py
MotionLayers = Literal["never", "maybe", "always"]  # "maybe": both kinds of file are published
PredictionType = Literal["epsilon", "v_prediction"]  # what a network outputs; turbo/schedule.py
Role = Literal["teacher", "student"]
Sampler = Literal["ddim", "consistency"]  # turbo/ddim.py, turbo/sampling.py
Spacing = Literal["leading", "trailing"]  # of DDIM timesteps; turbo/ddim.py
