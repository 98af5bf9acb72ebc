"""The features of a vote-trained reward, of every kind of backbone."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.turbo.rewards.test_internvideo2 import (  # noqa: F401  (fixtures)
    random_frames,
    reward,
    tokenizer,
)
from turbo.rewards import check_reward
from turbo.rewards.published import load_backbone
from turbo.rewards.vote_reward import (
    VoteHead,
    VoteReward,
    VoteRewardCard,
    check_backbone,
    count_frames,
    describe_tokens,
    describe_videos,
)

PROMPTS = ["a red star", "a blue star"]


@pytest.fixture(params=["shapes-image", "shapes-video", "internvideo2"])
def backbone(request):
    if request.param == "internvideo2":
        return request.getfixturevalue("reward")
    return check_backbone(request.param, load_backbone(request.param, Path("unused"))[0])


def make_reward(backbones, features: int) -> VoteReward:
    head = VoteHead(features, 2)
    head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    card = VoteRewardCard(
        backbones={},
        num_frames=count_frames(backbones),
        questions=["Q1", "Q2"],
        primary="Q2",
        title="",
        simulated=True,
    )
    return VoteReward(backbones, head, card)


def test_the_features_hold_the_backbones_own_score(backbone):
    frames = random_frames(2, count_frames([backbone]), 32, 32)
    own = backbone(frames, PROMPTS)

    features = describe_videos([backbone], frames, PROMPTS)

    gaps = (features - own[:, None]).abs().amax(dim=0)
    assert gaps.min() < 1e-5


def test_the_features_show_where_in_the_frame_a_token_is():
    tokens = torch.zeros(3, 2, 16, 5)  # videos, frames, patches of a 4 x 4 grid, dimensions
    for video, patch in enumerate((0, 3, 12)):  # corners: top left, top right, bottom left
        tokens[video, :, patch] = 1

    features = describe_tokens(tokens)

    mirrored = features[1:] - features[0]
    assert [(gap != 0).sum().item() for gap in mirrored] == [5, 5]  # columns alone, rows alone
    assert not (mirrored[0] * mirrored[1]).any()


def test_the_score_keeps_the_contract_of_a_reward(backbone):
    count = count_frames([backbone])
    width = describe_videos([backbone], random_frames(2, count, 32, 32), PROMPTS).shape[1]

    check_reward(make_reward([backbone], width), count)


def test_the_score_is_that_of_the_primary_question(backbone):
    frames = random_frames(2, count_frames([backbone]), 32, 32)
    features = describe_videos([backbone], frames, PROMPTS)
    made = make_reward([backbone], features.shape[1])

    assert_close(made(frames, PROMPTS), made.head(features)[:, 1])


def test_a_head_of_other_features_is_refused(backbone):
    frames = random_frames(2, count_frames([backbone]), 32, 32)

    with pytest.raises(ValueError, match="Train the reward again"):
        make_reward([backbone], 738)(frames, PROMPTS)


def test_backbones_of_different_lengths_are_refused(request):
    video = check_backbone("", load_backbone("shapes-video", Path("unused"))[0])

    with pytest.raises(ValueError, match="frames"):
        count_frames([request.getfixturevalue("reward"), video])


def test_scores_in_bfloat16_rank_as_in_float32(backbone):
    frames = random_frames(6, count_frames([backbone]), 32, 32)
    prompts = 3 * PROMPTS
    width = describe_videos([backbone], frames, prompts).shape[1]
    made = make_reward([backbone], width)
    scores = made(frames, prompts)

    half = made.to(torch.bfloat16)(frames, prompts)

    assert torch.corrcoef(torch.stack([scores, half]))[0, 1] > 0.98
