"""The study that exists from the first start on."""

import pytest

from demo import starter
from demo.starter import CLIPS, open_or_create
from human_eval.reporting.live_results import LiveResults, is_published
from human_eval.study.queries import read_study_progress
from tests.support.studies import claim_pair, enter_rater, find_defects, stored_clips


@pytest.mark.slow
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
        assert find_defects(store) == []
        prompts = (CLIPS / "prompts.txt").read_text().splitlines()
        assert read_study_progress(store).comparisons["pairs"].tolist() == [len(prompts)]
        assert [clip.status for clip in stored_clips(store)] == ["ok"] * 2 * len(prompts)
        assert LiveResults(store).read(simulated=True).answers == 3 * 3 * len(prompts)
        assert LiveResults(store).read().answers == 0
        with store.read() as connection:
            assert is_published(connection)
        rater = enter_rater(store, "anonymous", "somebody")
        assert claim_pair(store, rater) is not None
    finally:
        store.close()
    again = open_or_create(folder)
    assert read_study_progress(again).raters == 1
    again.close()
