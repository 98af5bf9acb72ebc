import huggingface_hub.constants as constants
import pytest

from tests.support.servers.fake_hub import FakeHub


@pytest.fixture
def hub(monkeypatch):
    """A Hub of this test's own, to which the library talks."""
    with FakeHub().running() as running:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running
