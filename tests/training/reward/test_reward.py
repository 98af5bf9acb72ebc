"""Votes become a reward that a distillation can use."""

import json
import shutil
import tomllib
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from human_eval.clips.ingest import Clip
from human_eval.errors import StudyError
from human_eval.reporting.export import write_export
from tests.support.crowd import define_pair, make_votes
from training.build import build_reward, count_reward_frames
from training.config import RewardTable
from training.reward.__main__ import configure_reward, main
from training.reward.comparisons import (
    TIE,
    Comparisons,
    divide_prompts,
    read_comparisons,
)
from training.reward.fit import VoteModel, fit_votes
from training.reward.measurements import measure_agreement, measure_calibration, measure_fit
from training.shapes.models.rewards import to_tensor
from training.shapes.world.scenes import SCENES, Defects, corrupt_clip, draw_clip
from turbo.manifest import sha256_of
from turbo.rewards import check_reward
from turbo.rewards.published import load_reward
from turbo.rewards.vote_reward import CARD, VoteHead
from turbo.video import Video

PROMPTS = 16
CPU = torch.device("cpu")
WASHED = Defects(watermark=0, washed_out=1, noise=0)


def draw(system: str, seed: int) -> np.ndarray:
    """Draw a clip: ours is clean, theirs has no contrast."""
    rng = np.random.default_rng(seed)
    clip = draw_clip(SCENES[seed], rng)
    return clip if system == "ours" else corrupt_clip(clip, WASHED, rng)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """The export of a study of which 9 in 10 votes are for the clean clips."""
    folder = tmp_path_factory.mktemp("study")
    definition = define_pair("raters_per_pair = 9\n")
    votes = make_votes(definition, prompts=PROMPTS, rates={("C1", "Q1"): 0.9}, left=0.3)
    clips = []
    for system in ("ours", "theirs"):
        for index in range(PROMPTS):
            name = f"{system}{index}.mp4"
            path = folder / "media" / name
            Video(draw(system, index), 8).save(path, enlarge=4)
            clips.append(
                Clip(
                    system=system,
                    prompt_index=index,
                    prompt=f"prompt {index}",
                    seed=0,
                    source_sha256="s",
                    stored_name=name,
                    sha256=sha256_of(path),
                )
            )
    write_export(votes, definition, folder / "export", clips=clips, media=folder / "media")
    return folder / "export"


@pytest.fixture(scope="module")
def rewards(export, tmp_path_factory):
    """The folder of rewards, with one that the command has made."""
    folder = tmp_path_factory.mktemp("rewards")
    main([str(export), "--out", str(folder / "mine"), "--backbone", "shapes-image"])
    return folder


def test_a_reward_of_votes_scores_what_people_prefer_higher(rewards):
    table = RewardTable(name="mine", folder=str(rewards / "mine"), weight=1)
    reward = build_reward(table, CPU, half=False, recompute=False, load=True)
    check_reward(reward.model, reward.frames)
    seeds = range(100, 108)  # scenes that nobody voted on

    clean, washed = (
        reward.model(
            to_tensor(np.stack([draw(system, seed)[::2] for seed in seeds])),
            [SCENES[seed].caption() for seed in seeds],
        )
        for system in ("ours", "theirs")
    )

    assert (clean > washed).all()


def test_the_card_has_what_was_measured_on_held_out_votes(rewards):
    card = json.loads((rewards / "mine" / CARD).read_text())

    measured = card["measured"]["Q1"]
    assert not card["simulated"]
    assert measured["accuracy"] > 0.7
    assert measured["low"] <= measured["accuracy"] <= measured["high"]
    assert measured["loss"] < measured["loss_without"]
    assert 0.5 < measured["raters"] <= 1
    assert "SIMULATED" not in (rewards / "mine" / "README.md").read_text()


def test_a_reward_that_predicts_nothing_is_written_and_reported(
    export, tmp_path, monkeypatch, capsys
):
    """Few votes decide nothing; the smallest rounding must not decide whether a reward exists."""
    votes = read_comparisons(export)
    opposite = torch.where(votes.answer == TIE, TIE, 1 - votes.answer)
    held_out = torch.where(votes.part == 0, votes.answer, opposite)  # no lesson is true of these
    monkeypatch.setattr(
        "training.reward.__main__.read_comparisons",
        lambda *_, **__: replace(votes, answer=held_out),
    )

    main([str(export), "--out", str(tmp_path / "mine"), "--backbone", "shapes-image"])

    measured = json.loads((tmp_path / "mine" / CARD).read_text())["measured"]["Q1"]
    assert measured["loss"] > measured["loss_without"]
    for text in (capsys.readouterr().out, (tmp_path / "mine" / "README.md").read_text()):
        assert "better than if the clips are ignored" in text


@pytest.fixture
def train(export, tmp_path, monkeypatch, capsys):
    """Return a function that trains on changed votes: the measured, the card and the output."""

    def train(change, out: str = "mine"):
        votes = change(read_comparisons(export))
        monkeypatch.setattr("training.reward.__main__.read_comparisons", lambda *_, **__: votes)
        folder = tmp_path / out
        folder.parent.mkdir(exist_ok=True)
        main([str(export), "--out", str(folder), "--backbone", "shapes-image"])
        card = json.loads((folder / CARD).read_text())
        return card["measured"], (folder / "README.md").read_text(), capsys.readouterr().out

    return train


@pytest.mark.parametrize("raters", ["one", "several"])
def test_one_held_out_prompt_gives_an_accuracy_without_an_interval(train, raters):
    def change(votes):
        first = votes.first[votes.votes_of("test")[0]]
        others = (votes.part == 2) & (votes.first != first)
        rater = torch.zeros_like(votes.rater) if raters == "one" else votes.rater
        return replace(votes, rater=rater, part=torch.where(others, 0, votes.part))

    measured, card, printed = train(change)

    assert 0 <= measured["Q1"]["accuracy"] <= 1
    assert measured["Q1"]["low"] is None and measured["Q1"]["high"] is None
    assert "no interval" in card and "no interval" in printed
    assert measured["Q1"]["gain_low"] is None
    assert "clips are ignored: Q1" in card and "clips are ignored: Q1" in printed


def test_what_an_interval_does_not_cover_is_said(train):
    unknown, card, printed = train(
        lambda votes: replace(votes, rater=torch.zeros_like(votes.rater))
    )

    assert unknown["Q1"]["low"] < unknown["Q1"]["high"]
    assert "over prompts only" in unknown["Q1"]["note"]
    assert "over prompts only" in card and "over prompts only" in printed


def test_a_question_without_a_decided_held_out_vote_is_named(train):
    def change(votes):
        return replace(votes, answer=torch.where(votes.part == 2, TIE, votes.answer))

    measured, card, printed = train(change)

    assert measured == {}
    assert "Q1" in card.split("On the test votes")[1]
    assert "Q1" in printed.split("rewards =")[0]


def test_votes_that_teach_nothing_are_refused_before_clips_are_described(train, monkeypatch):
    monkeypatch.setattr("training.reward.__main__.describe_clips", None)

    with pytest.raises(SystemExit, match="Q1"):
        train(lambda votes: replace(votes, answer=torch.where(votes.part == 0, TIE, votes.answer)))


@pytest.mark.parametrize("out", ["mine", "rewards/mine", 'a "b"/mine'])
def test_the_printed_configuration_finds_the_reward(train, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)

    *_, printed = train(lambda votes: votes, out)

    [table] = tomllib.loads(printed[printed.index("rewards =") :])["rewards"]
    assert count_reward_frames(RewardTable(**table)) > 0


def test_the_usual_folder_is_not_written_into_the_configuration():
    assert configure_reward(Path("rewards/mine")) == '{ name = "mine", weight = 1.0 }'


def test_a_reward_is_not_written_over_another(export, rewards):
    before = (rewards / "mine" / CARD).read_bytes()

    with pytest.raises(SystemExit, match="exists"):
        main([str(export), "--out", str(rewards / "mine"), "--backbone", "shapes-image"])

    assert (rewards / "mine" / CARD).read_bytes() == before


def test_a_reward_refuses_a_question_that_was_not_asked(rewards):
    with pytest.raises(ValueError, match="Q1"):
        load_reward("mine", rewards / "mine", "Q7")


def test_a_reward_of_before_the_baseline_was_fitted_is_still_loaded(rewards, tmp_path):
    folder = shutil.copytree(rewards / "mine", tmp_path / "mine")
    card = json.loads((folder / CARD).read_text())
    for name in ("note", "gain_low", "gain_high"):
        del card["measured"]["Q1"][name]
    (folder / CARD).write_text(json.dumps(card))

    assert load_reward("mine", folder).card.primary == "Q1"


def test_a_reward_refuses_backbones_of_other_weights(rewards, tmp_path):
    card = json.loads((rewards / "mine" / CARD).read_text())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / CARD).write_text(
        json.dumps(card | {"backbones": {"shapes-image": "0" * 64}})
    )

    with pytest.raises(ValueError, match="other weights"):
        load_reward("mine", tmp_path / "mine")


def test_votes_without_clips_are_refused(export, tmp_path):
    for name in ("study.toml", "votes.csv", "clips.csv", "SHA256SUMS"):
        (tmp_path / name).write_bytes((export / name).read_bytes())

    with pytest.raises(ValueError, match="--clips"):
        read_comparisons(tmp_path)


def test_a_clip_that_nobody_saw_is_refused(export, tmp_path):
    folder = shutil.copytree(export, tmp_path / "export")
    shutil.copyfile(folder / "media" / "theirs0.mp4", folder / "media" / "ours0.mp4")

    with pytest.raises(StudyError, match="ours0.mp4"):
        read_comparisons(folder)


def test_a_table_of_clips_that_was_changed_is_refused(export, tmp_path):
    folder = shutil.copytree(export, tmp_path / "export")
    table = (folder / "clips.csv").read_text()
    (folder / "clips.csv").write_text(table.replace("ours0.mp4", "theirs0.mp4"))

    with pytest.raises(StudyError, match=r"clips\.csv"):
        read_comparisons(folder)


def test_a_table_names_the_clips_of_votes_from_elsewhere(export, tmp_path):
    for name in ("study.toml", "votes.csv", "SHA256SUMS"):
        (tmp_path / name).write_bytes((export / name).read_bytes())
    rows = [
        {
            "system": title,
            "prompt": f"Prompt  {index}",
            "path": export / "media" / f"{key}{index}.mp4",
        }
        for key, title in (("ours", "Ours"), ("theirs", "theirs"))
        for index in range(PROMPTS)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "clips.csv", index=False)

    votes, exported = read_comparisons(tmp_path, tmp_path / "clips.csv"), read_comparisons(export)

    def shown(one: Comparisons) -> list[tuple[str, str]]:
        pairs = zip(one.first.tolist(), one.second.tolist(), strict=True)
        return [(one.clips[a].name, one.clips[b].name) for a, b in pairs]

    assert shown(votes) == shown(exported)


def test_prompts_are_divided_by_their_text_alone():
    prompts = {f"prompt {number}" for number in range(40)}

    parts = divide_prompts(prompts, seed=0)

    assert parts == divide_prompts(set(sorted(prompts, reverse=True)), seed=0)
    assert [list(parts.values()).count(part) for part in (0, 1, 2)] == [28, 6, 6]
    with pytest.raises(ValueError, match="prompts"):
        divide_prompts({"a", "b"}, seed=0)


def compare(answer, *, left, rater, first, second, clips) -> Comparisons:
    count = len(answer)
    return Comparisons(
        clips=list(range(clips)),
        prompts=[""] * clips,
        first=first,
        second=second,
        question=torch.zeros(count, dtype=torch.long),
        answer=answer,
        left=left,
        rater=rater,
        part=(torch.arange(count) % 5 == 0).long(),  # train and validation
        questions=["Q1"],
        primary="Q1",
        wordings=[""],
        title="",
        simulated=True,
    )


def test_answers_have_davidsons_probabilities():
    """Davidson (1970), with strengths 4 and 1 and nu = 1/2: 4, 1 and 1/2 * sqrt(4 * 1) of 6."""
    model = VoteModel(VoteHead(1, 1), questions=1, raters=1)
    model.head.weight.data.fill_(log(4))
    model.log_tie.data.fill_(log(0.5))
    none = torch.zeros(1, dtype=torch.long)
    votes = compare(none, left=torch.zeros(1), rater=none, first=none, second=none + 1, clips=2)

    found = model(torch.tensor([[1.0], [0.0]]), votes, none).exp()

    assert found[0].tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6])


def test_a_fit_finds_the_planted_scores_ties_and_raters():
    """Rater 0 is careful and unbiased, rater 1 answers at random with a bias to the left."""
    generator = torch.Generator().manual_seed(0)
    count, clips = 4000, 400
    features = torch.randn(clips, 3, generator=generator)
    truth = features @ torch.tensor([1.5, -1.0, 0.0])
    first, second = torch.randint(clips, (2, count), generator=generator)
    rater = torch.arange(count) % 2
    left = torch.randint(2, (count,), generator=generator) * 2.0 - 1
    eta = torch.where(rater == 0, truth[first] - truth[second], left)
    odds = torch.stack([(eta / 2).exp(), (-eta / 2).exp(), torch.full((count,), 0.8)], dim=1)
    answer = odds.multinomial(1, generator=generator)[:, 0]
    votes = compare(answer, left=left, rater=rater, first=first, second=second, clips=clips)

    model = fit_votes(features, votes).model

    score = (model.head(features)[:, 0]).detach()
    assert torch.corrcoef(torch.stack([score, truth]))[0, 1] > 0.99
    assert model.temperature[0] > model.temperature[1] + 0.5
    assert model.bias[1] > model.bias[0] + 0.5
    assert model.log_tie.exp().item() == pytest.approx(0.8, rel=0.15)
    assert (answer == TIE).any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("taste", [0.0, 2.0])
def test_a_reward_must_beat_what_side_biases_and_ties_predict(seed, taste):
    """All raters favour the left side; without a taste, nothing else decides."""
    generator = torch.Generator().manual_seed(seed)
    count, clips = 1200, 80
    features = torch.randn(clips, 4, generator=generator)
    prompt = torch.arange(count) % (clips // 2)
    left = torch.randint(2, (count,), generator=generator) * 2.0 - 1
    eta = 2 * left + taste * (features[2 * prompt, 0] - features[2 * prompt + 1, 0])
    odds = torch.stack([(eta / 2).exp(), (-eta / 2).exp(), torch.full((count,), 0.3)], dim=1)
    answer = odds.multinomial(1, generator=generator)[:, 0]
    rater = torch.randint(20, (count,), generator=generator)
    votes = replace(
        compare(answer, left=left, rater=rater, first=2 * prompt, second=2 * prompt + 1,
                clips=clips),
        prompts=[f"prompt {clip // 2}" for clip in range(clips)],
        part=(prompt % 4 - 1).clamp(min=0),  # half of the prompts train
    )  # fmt: skip

    measured = measure_fit(fit_votes(features, votes).model, features, votes)["Q1"]

    assert measured.beats_baseline == (taste > 0)
    assert measured.loss_without < log(3)  # what side biases predict
    gain = round(measured.loss_without - measured.loss, 4)
    assert measured.gain_low <= gain <= measured.gain_high


def test_agreement_is_that_of_two_votes_on_one_pair():
    pairs, won = np.array([5, 5, 5, 9]), np.array([True, True, False, True])

    assert measure_agreement(pairs, won) == pytest.approx(1 / 3)
    assert np.isnan(measure_agreement(np.array([1, 2]), np.array([True, False])))


def test_a_forecast_that_comes_true_is_calibrated():
    predicted = np.repeat([0.2, 0.8], 50)
    won = np.arange(100) % 10 < np.where(predicted < 0.5, 2, 8)

    assert measure_calibration(predicted, won) == pytest.approx(0, abs=1e-9)
    assert measure_calibration(1 - predicted, won) == pytest.approx(0.6)
