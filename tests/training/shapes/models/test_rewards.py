"""Training of the reward models: pairs of frames, and captions with a wrong word."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from training.shapes.models import rewards
from training.shapes.models.rewards import SCENES
from training.shapes.models.student_estimates import StudentEstimates


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch):
    """Leave out the jitter, so that pixels can be compared."""
    monkeypatch.setattr(rewards, "_jitter", lambda pixels, rng: pixels.astype(np.float32))


def test_attributes_that_a_frame_does_not_show_are_not_compared():
    generator = torch.Generator().manual_seed(0)
    seen, own = (normalize(torch.randn(3, 8, generator=generator), dim=-1) for _ in range(2))
    others = [normalize(torch.randn(3, 2, 8, generator=generator), dim=-1) for _ in range(2)]
    differ, hidden = torch.zeros(3, 3, dtype=torch.bool), torch.tensor([[True, False]] * 3)
    others[1][:, 0] = others[0][:, 0]  # they differ in the attribute that is hidden

    unseen = [rewards.contrastive_loss(seen, own, words, differ, hidden) for words in others]
    compared = [rewards.contrastive_loss(seen, own, words, differ) for words in others]

    assert torch.equal(*unseen)
    assert not torch.equal(*compared)


def test_the_preference_loss_falls_with_the_similarity_of_the_better_frame():
    own = torch.eye(2, 4)
    worse = normalize(torch.ones(2, 4), dim=-1)

    assert rewards.preference_loss(own, worse, own) < rewards.preference_loss(worse, worse, own)
    assert rewards.preference_loss(worse, worse, own) < rewards.preference_loss(worse, own, own)


def test_a_blinking_sprite_is_hidden_in_every_second_group_of_frames(exact):
    blinking = next(i for i, scene in enumerate(SCENES) if scene.motion == "blinking")
    frames = torch.arange(16, dtype=torch.uint8)[None, :, None, None, None].expand(1, 16, 4, 4, 3)
    estimates = StudentEstimates(
        low_noise=frames, high_noise=frames, scene=torch.tensor([blinking])
    )

    for seed in range(20):
        good, bad, shown = rewards.pick_frame_pair(estimates, 0, np.random.default_rng(seed))
        assert np.array_equal(good, bad)  # the same frame of both clips
        assert shown == (int(good[0, 0, 0]) % 8 < 4)
