"""The study that exists from the first start on."""

import pytest

from demo import starter
from demo.starter import CLIPS, open_or_create
from human_eval.reporting.live_results import LiveResults, is_published


def test_an_interrupted_start_is_repeated_and_later_starts_open_the_study(tmp_path, monkeypatch):
    folder = tmp_path / "studies" / "shapes-demo"

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(starter, "simulate", stop)
        open_or_create(folder)
    assert not folder.exists()

    store = open_or_create(folder)
    try:
        assert [path.name for path in folder.parent.iterdir()] == ["shapes-demo"]
        assert store.list_defects() == []
        prompts = (CLIPS / "prompts.txt").read_text().splitlines()
        assert store.progress()["comparisons"]["pairs"].tolist() == [len(prompts)]
        assert [clip.status for clip in store.clips()] == ["ok"] * 2 * len(prompts)
        assert LiveResults(store).read(simulated=True).answers == 3 * 3 * len(prompts)
        assert LiveResults(store).read().answers == 0
        with store.read() as connection:
            assert is_published(connection)
        rater = store.enter("anonymous", "somebody")
        assert store.claim(rater) is not None
    finally:
        store.close()
    again = open_or_create(folder)
    assert again.progress()["raters"] == 1
    again.close()
