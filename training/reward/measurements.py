"""How well a fitted reward predicts held-out votes, and how well raters predict each other."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from human_eval.statistics.agreement import raw_agreement
from human_eval.statistics.intervals import clustered_mean
from training.reward.comparisons import TIE, Comparisons
from training.reward.fit import VoteModel, answer_losses, fit_baseline

BINS = 10
DIGITS = 4


@dataclass(frozen=True)
class Measured:
    """The votes on the test prompts for one question; shares are of the votes that are not ties."""

    votes: int
    ties: int
    accuracy: float  # the reward alone names the winner; nothing is known of the rater
    low: float | None  # 95 % interval over prompts and raters; None of a single prompt
    high: float | None
    note: str  # what a reader must know about this interval, or ""
    raters: float | None  # two raters of one pair agree; None if no pair has two votes
    calibration_error: float  # mean gap between predicted and observed shares, over ten groups
    loss: float  # mean of -log P(answer), with ties and the effects of raters
    loss_without: float  # the same of ties and side biases alone, fitted without the clips
    gain_low: float | None  # 95 % interval of loss_without - loss; None if there is none
    gain_high: float | None

    @property
    def beats_baseline(self) -> bool:
        """Whether the votes show that the reward predicts better than without the clips."""
        return self.gain_low is not None and self.gain_low > 0


def measure_fit(
    model: VoteModel, features: Float[Tensor, "C D"], votes: Comparisons
) -> dict[str, Measured]:
    """Measure on the test votes of each question that has votes other than ties."""
    test = votes.votes_of("test")
    model = model.eval().requires_grad_(False)
    baseline = fit_baseline(features, votes).requires_grad_(False)
    measured = {}
    for question, key in enumerate(votes.questions):
        rows = test[votes.question[test] == question]
        decided = rows[votes.answer[rows] != TIE]
        if not len(decided):
            continue
        won = (votes.answer[decided] == 0).numpy()
        advantage = model.advantage(features, votes, decided).numpy()
        hit = np.where(advantage == 0, 0.5, (advantage > 0) == won)
        low, high, note = measure_interval(hit, votes, decided)
        losses, without = (
            answer_losses(one, features, votes, rows).double().numpy() for one in (model, baseline)
        )
        gain_low, gain_high, _ = measure_interval(
            without - losses, votes, rows, null=0.0, bounds=(-np.inf, np.inf)
        )
        answers = model(features, votes, decided)
        predicted = (answers[:, 0] - answers[:, 1]).sigmoid().numpy()
        pairs = votes.first[decided] * len(votes.clips) + votes.second[decided]
        agreement = measure_agreement(pairs.numpy(), won)
        measured[key] = Measured(
            votes=len(rows),
            ties=len(rows) - len(decided),
            accuracy=round(float(hit.mean()), DIGITS),
            low=low,
            high=high,
            note=note,
            raters=None if np.isnan(agreement) else round(agreement, DIGITS),
            calibration_error=round(measure_calibration(predicted, won), DIGITS),
            loss=round(float(losses.mean()), DIGITS),
            loss_without=round(float(without.mean()), DIGITS),
            gain_low=gain_low,
            gain_high=gain_high,
        )
    return measured


def measure_interval(
    values: Float[np.ndarray, " N"],
    votes: Comparisons,
    rows: Int[Tensor, " N"],
    *,
    null: float = 0.5,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float | None, float | None, str]:
    """Return the 95 % interval of a mean over prompts and raters, and a note about it.

    A single prompt has none: it does not show how much prompts differ. Without raters, or with one
    in all, the interval is over prompts only.

    Args:
        values: of each vote in `rows`.
        null, bounds: as for `clustered_mean`.

    Returns:
        Both ends, None where there is none, and what a reader must know.
    """
    clusters = {"prompt": [votes.prompts[row] for row in votes.first[rows].tolist()]}
    if len(set(clusters["prompt"])) < 2:
        return None, None, "no interval: one prompt"
    notes = []
    if len(set(votes.rater.tolist())) > 1:
        clusters["rater"] = votes.rater[rows].tolist()
    else:
        notes = ["over prompts only"]
    mean = clustered_mean(values, clusters, null=null, bounds=bounds)
    notes += [mean.note] if mean.note else []
    low, high = (round(end, DIGITS) if np.isfinite(end) else None for end in (mean.low, mean.high))
    return low, high, "; ".join(notes)


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
