"""What the reward models are trained on: pairs of pictures, and captions with a wrong word."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from training.shapes.models import rewards
from training.shapes.models.jumps import Jumps
from training.shapes.models.rewards import SCENES


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch):
    """Leave out the small changes that hide nothing but make pixels unequal."""
    monkeypatch.setattr(rewards, "_mildly", lambda pixels, rng: pixels.astype(np.float32))


def test_only_what_a_picture_shows_is_compared():
    generator = torch.Generator().manual_seed(0)
    seen, own = (normalize(torch.randn(3, 8, generator=generator), dim=-1) for _ in range(2))
    others = [normalize(torch.randn(3, 2, 8, generator=generator), dim=-1) for _ in range(2)]
    differ, hidden = torch.zeros(3, 3, dtype=torch.bool), torch.tensor([[True, False]] * 3)
    others[1][:, 0] = others[0][:, 0]  # they differ in the word that cannot be told

    unseen = [rewards.contrast(seen, own, words, differ, hidden) for words in others]
    compared = [rewards.contrast(seen, own, words, differ) for words in others]

    assert torch.equal(*unseen)
    assert not torch.equal(*compared)


def test_the_preference_loss_falls_as_the_better_picture_comes_nearer_to_its_caption():
    own = torch.eye(2, 4)
    worse = normalize(torch.ones(2, 4), dim=-1)

    assert rewards.prefer(own, worse, own) < rewards.prefer(worse, worse, own)
    assert rewards.prefer(worse, worse, own) < rewards.prefer(worse, own, own)


def test_a_frame_in_which_the_sprite_blinks_shows_none(exact):
    blinking = next(i for i, scene in enumerate(SCENES) if scene.motion == "blinking")
    far = torch.arange(16, dtype=torch.uint8)[None, :, None, None, None].expand(1, 16, 4, 4, 3)
    jumps = Jumps(near=far, far=far, scene=torch.tensor([blinking]))

    for seed in range(20):
        good, bad, shown = rewards.pick_frame_pair(jumps, 0, np.random.default_rng(seed))
        assert np.array_equal(good, bad)  # the same frame of both
        assert shown == (int(good[0, 0, 0]) % 8 < 4)
