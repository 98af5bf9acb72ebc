"""The table of models: consistent cards, and cheap to read."""

import subprocess
import sys

import pytest

from turbo.models import DEFAULT_MODEL, MODELS, find_card
from turbo.request import check_request


def test_table_is_keyed_by_name_and_holds_the_default():
    assert all(name == card.name for name, card in MODELS.items())
    assert DEFAULT_MODEL in MODELS


@pytest.mark.parametrize("card", MODELS.values(), ids=lambda card: card.name)
def test_card_serves_its_own_defaults(card):
    request = check_request(card, "a cat")

    assert (request.steps, request.guidance) == (card.default_steps, card.default_guidance)
    assert (card.role == "teacher") == (card.sampler == "ddim")
    assert card.max_steps <= card.origin_steps or card.sampler == "ddim"
    assert card.height * card.enlarge % 2 == 0  # what an mp4 can hold


def test_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Expected a model from \['shapes-teacher', .* 'nobody'"):
        find_card("nobody")


def test_reading_the_table_does_not_import_torch():
    """The demo's page opens before torch is loaded."""
    script = "import sys, turbo.models, turbo.request; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
