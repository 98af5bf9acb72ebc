"""Totals of VBench: the paper's rows, and intervals over prompts."""

import json
import zipfile

import numpy as np
import pytest

from turbo.vbench.flickering import temporal_flickering
from turbo.vbench.scores import (
    DIMENSIONS,
    GROUPS_2,
    Results,
    bootstrap,
    compute_totals,
    compute_totals_2,
    paper_rows,
    read_results,
)

ROWS = paper_rows()


@pytest.mark.parametrize("row", ROWS, ids=[row["system"] for row in ROWS])
def test_totals_of_the_papers_rows_are_those_in_print(row):
    found = compute_totals({name: float(row[name]) / 100 for name in DIMENSIONS})

    for name in ("total", "quality", "semantic"):
        assert 100 * getattr(found, name) == pytest.approx(float(row[name]), abs=0.01)


def test_the_papers_rows_are_all_there():
    assert [row["table"] for row in ROWS].count("4") == 15
    assert len({row["system"] for row in ROWS}) == len(ROWS) == 21


def _results(prompts=40, samples=5, spread=0.1, seed=0):
    """One stratum of prompts for the dimensions of quality, one for each other dimension."""
    generator = np.random.default_rng(seed)
    videos = {}
    for number, dimension in enumerate(DIMENSIONS):
        group = "q" if number < 7 else dimension
        of_prompt = generator.normal(0.5, spread, prompts)
        videos[dimension] = {
            f"{group} {p}-{s}.mp4": of_prompt[p] + generator.normal(0, spread / 10)
            for p in range(prompts)
            for s in range(samples)
        }
    scores = {name: float(np.mean(list(values.values()))) for name, values in videos.items()}
    return Results(scores, videos)


def test_an_interval_is_that_of_the_means_of_prompts():
    """Clips of one prompt agree, so they count once, not five times."""
    results = _results(prompts=100)
    low, high = bootstrap(results)

    errors = {}
    for name, scale in DIMENSIONS.items():
        prompts = np.array(list(results.videos[name].values())).reshape(-1, 5).mean(axis=1)
        errors[name] = prompts.std() / 10 / (scale.high - scale.low)
    semantic = np.sqrt(sum(errors[name] ** 2 for name in list(DIMENSIONS)[7:])) / 9
    middle = compute_totals(results.scores)
    assert low.total < middle.total < high.total
    assert high.semantic - low.semantic == pytest.approx(2 * 1.96 * semantic, rel=0.1)


def test_an_interval_keeps_the_correlation_of_dimensions_of_one_prompt():
    results = _results()
    alone = bootstrap(results)
    for name in list(DIMENSIONS)[:7]:  # every dimension says the same of a prompt
        results.videos[name] = results.videos["aesthetic_quality"]
        results.scores[name] = results.scores["aesthetic_quality"]
    together = bootstrap(results)

    assert together[1].quality - together[0].quality > 2 * (alone[1].quality - alone[0].quality)


def test_a_missing_dimension_is_not_counted_as_0():
    scores = dict.fromkeys(DIMENSIONS, 0.5)
    del scores["scene"], scores["color"]

    with pytest.raises(ValueError, match="color, scene missing"):
        compute_totals(scores)


def _write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_results_are_read_from_a_file_a_folder_and_a_zip(tmp_path):
    video = {"video_path": "/x/a cat-0.mp4", "video_results": 64.0}
    _write(tmp_path / "a_eval_results.json", {"imaging_quality": [0.64, [video]]})
    _write(tmp_path / "b_eval_results.json", {"human action": [0.9, [], "extra"]})
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in tmp_path.glob("*.json"):
            archive.write(file, f"results/{file.name}")

    folder, archive = read_results(tmp_path), read_results(tmp_path / "x.zip")

    assert folder == archive
    assert folder.scores == {"imaging_quality": 0.64, "human_action": 0.9}
    assert folder.videos["imaging_quality"] == {"a cat-0.mp4": 0.64}  # a video's is of 100
    assert read_results(tmp_path / "a_eval_results.json").scores == {"imaging_quality": 0.64}


@pytest.mark.parametrize(
    "content",
    ["[1]", '{"color": ["x", []]}', '{"color": [NaN, []]}', '{"color": [0.5, [1]]}', "{", "{}"]
    + ['{"color": [0.5]}', '{"color": []}', '{"color": [0.5, [{"video_path": 1}]]}'],
)
def test_what_are_no_results_is_refused_with_its_file(tmp_path, content):
    (tmp_path / "c_eval_results.json").write_text(content)

    with pytest.raises(ValueError, match="c_eval_results.json|16 dimensions"):
        compute_totals(read_results(tmp_path / "c_eval_results.json").scores)


def test_two_files_that_disagree_are_refused(tmp_path):
    _write(tmp_path / "a_eval_results.json", {"color": [0.5, []]})
    _write(tmp_path / "b_eval_results.json", {"color": [0.6, []]})

    with pytest.raises(ValueError, match="another score of color"):
        read_results(tmp_path)


def test_totals_of_vbench_2_are_means_of_groups():
    scores = {name: 0.1 * n for n, names in enumerate(GROUPS_2.values()) for name in names}

    found = compute_totals_2(scores)

    assert len(scores) == 18
    assert found["physics"] == pytest.approx(0.4)
    assert found["total"] == pytest.approx(0.2)


def test_flickering_is_the_mean_difference_of_neighbouring_frames():
    """The published formula, written out: (255 - mean absolute difference) / 255."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    total = 0
    for before, after in zip(frames[:-1].astype(int), frames[1:].astype(int), strict=True):
        total += abs(after - before).sum() / before.size

    assert temporal_flickering(frames) == pytest.approx((255 - total / 4) / 255, abs=1e-7)
    assert temporal_flickering(frames[[2, 2, 2]]) == 1
    with pytest.raises(ValueError, match="at least two frames"):
        temporal_flickering(frames[:1])
