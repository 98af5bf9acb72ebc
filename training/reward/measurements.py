"""How well a fitted reward predicts held-out votes, and how well raters predict each other."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from human_eval.statistics.agreement import raw_agreement
from human_eval.statistics.intervals import clustered_mean
from training.reward.comparisons import TIE, Comparisons
from training.reward.fit import VoteModel, answer_loss, start_model

BINS = 10
DIGITS = 4


@dataclass(frozen=True)
class Measured:
    """The votes of the test prompts on one question; shares are of those that are no ties."""

    votes: int
    ties: int
    accuracy: float  # the reward alone names the winner; nothing is known of the rater
    low: float | None  # 95 % interval over prompts and raters; None of one prompt by one rater
    high: float | None
    raters: float | None  # two raters of one pair agree; None if no pair has two votes
    calibration_error: float  # mean gap between predicted and observed shares, over ten groups
    loss: float  # mean of -log P(answer), with ties and the effects of raters
    loss_without: float  # the same if the clips are ignored


def measure_fit(
    model: VoteModel, features: Float[Tensor, "C D"], votes: Comparisons
) -> dict[str, Measured]:
    """Measure on the test votes of each question that has votes other than ties."""
    test = votes.votes_of("test")
    model = model.eval().requires_grad_(False)
    ignorant = start_model(features, votes, votes.votes_of("train")).requires_grad_(False)
    measured = {}
    for question, key in enumerate(votes.questions):
        rows = test[votes.question[test] == question]
        decided = rows[votes.answer[rows] != TIE]
        if not len(decided):
            continue
        won = (votes.answer[decided] == 0).numpy()
        advantage = model.advantage(features, votes, decided).numpy()
        hit = np.where(advantage == 0, 0.5, (advantage > 0) == won)
        clusters = {"prompt": [votes.prompts[row] for row in votes.first[decided].tolist()]}
        if len(set(votes.rater.tolist())) > 1:
            clusters["rater"] = votes.rater[decided].tolist()
        several = any(len(set(of)) > 1 for of in clusters.values())
        share = clustered_mean(hit, clusters) if several else None
        answers = model(features, votes, decided)
        predicted = (answers[:, 0] - answers[:, 1]).sigmoid().numpy()
        pairs = votes.first[decided] * len(votes.clips) + votes.second[decided]
        agreement = measure_agreement(pairs.numpy(), won)
        measured[key] = Measured(
            votes=len(rows),
            ties=len(rows) - len(decided),
            accuracy=round(float(hit.mean()), DIGITS),
            low=None if share is None else round(share.low, DIGITS),
            high=None if share is None else round(share.high, DIGITS),
            raters=None if np.isnan(agreement) else round(agreement, DIGITS),
            calibration_error=round(measure_calibration(predicted, won), DIGITS),
            loss=round(float(answer_loss(model, features, votes, rows)), DIGITS),
            loss_without=round(float(answer_loss(ignorant, features, votes, rows)), DIGITS),
        )
    return measured


def measure_agreement(pairs: Int[np.ndarray, " N"], won: Bool[np.ndarray, " N"]) -> float:
    """Return the probability that two votes on the same pair are equal; NaN if none has two."""
    _, pair = np.unique(pairs, return_inverse=True)
    counts = np.bincount(2 * pair + won, minlength=2 * (pair.max() + 1)).reshape(-1, 2)
    return raw_agreement(counts)


def measure_calibration(predicted: Float[np.ndarray, " N"], won: Bool[np.ndarray, " N"]) -> float:
    """Return the expected calibration error over groups of equal size, by the prediction."""
    groups = np.array_split(np.argsort(predicted, kind="stable"), min(BINS, len(won)))
    gaps = [abs(predicted[rows].mean() - won[rows].mean()) * len(rows) for rows in groups]
    return float(sum(gaps) / len(won))
