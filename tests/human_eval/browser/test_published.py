"""A published study, served from the folder that goes to a Space."""

import os
import signal
import subprocess
import sys
import time
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from human_eval.cli.main import main
from human_eval.server.accounts import add_account
from tests.human_eval.browser.rater_page import answer, begin, wait_for_pair
from tests.support.rated_study import SECRETS, START_SECONDS, make_study
from tests.support.servers.fake_hub import TOKEN, FakeHub
from tests.support.studies import free_port

pytestmark = [pytest.mark.browser, pytest.mark.slow]
DATA, PASSWORD = "me/study-votes", "correct horse battery"


@pytest.fixture
def published(tmp_path):
    """A study on a Hub, with the folder of its Space; served from there."""
    store = make_study(tmp_path / "study", pairs=2, loops=0, frames=8)
    add_account(store.folder, "ada", PASSWORD, "admin")
    store.close()
    command = ["publish", str(store.folder), "--space", "me/study"]
    main([*command, "--dry-run", str(tmp_path / "dry")])
    data = tmp_path / "dry" / "data"
    with FakeHub().running() as hub:
        hub.add_data_set(DATA, data)
        yield Published(tmp_path, hub, store.keys.secret)


class Published:
    def __init__(self, folder, hub, secret) -> None:
        self.folder, self.hub, self.secret = folder, hub, secret
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> subprocess.Popen:
        """Start the Space as its image does, with an environment of nothing else."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "human_eval",
                "host",
                "--port",
                str(self.port),
                "--every",
                "600",
            ],
            cwd=self.folder / "dry" / "space",
            env={
                **kept,
                "HOME": str(self.folder),
                "HF_ENDPOINT": self.hub.url,
                "HF_TOKEN": TOKEN,
                "HUMAN_EVAL_DATA_SET": DATA,
                "HUMAN_EVAL_SECRET": self.secret,
            },
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                with urlopen(f"{self.url}/study/rate"):
                    return process
            except (HTTPError, URLError, ConnectionError):
                assert process.poll() is None
                time.sleep(0.1)
        process.kill()
        raise TimeoutError("the Space does not start")


def test_a_space_serves_raters_counts_for_researchers_and_journals_at_its_end(
    published, open_rater
):
    process = published.start()
    try:
        page = open_rater(published, "/")
        first = begin(page)
        assert not [word for word in SECRETS if word in page.content().lower()]
        answer(page)
        wait_for_pair(page, first)

        page.goto(f"{published.url}/admin/")
        page.get_by_label("Name").fill("ada")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        facts = page.locator("#storage .facts").inner_text()
        assert "3 stored here, 0 synced, 3 pending" in " ".join(facts.split())
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)

    files = published.hub.repositories[f"datasets/{DATA}"].files
    lines = b"".join(text for path, text in files.items() if path.startswith("journal/"))
    assert lines.count(b'"vote": ') == 3
