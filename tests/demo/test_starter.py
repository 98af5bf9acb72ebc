"""The study that is there from the first start on."""

import pytest

from demo import starter
from demo.starter import CLIPS, open_or_start
from human_eval.reporting.live_results import LiveResults, is_published


def test_the_first_start_makes_a_study_and_the_second_opens_it(tmp_path):
    folder = tmp_path / "studies" / "shapes-demo"
    store = open_or_start(folder)
    try:
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
    again = open_or_start(folder)
    assert again.progress()["raters"] == 1
    again.close()


def test_a_start_that_was_stopped_begins_again(tmp_path, monkeypatch):
    folder = tmp_path / "studies" / "shapes-demo"

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(starter, "simulate", stop)
        open_or_start(folder)
    assert not folder.exists()

    store = open_or_start(folder)
    assert store.list_defects() == []
    assert [path.name for path in folder.parent.iterdir()] == ["shapes-demo"]
    store.close()
