"""Fit a head to votes: Davidson's model of paired comparisons with ties, with effects of raters.

    eta = exp(t_r) (s_q(a) - s_q(b)) + b_r side
    P(a), P(b), P(tie)  proportional to  exp(eta / 2), exp(-eta / 2), nu_q

s_q is the score of question q, linear in frozen features; side is 1 where a was shown on the left,
-1 on the right. Each rater r has a temperature, since careless raters follow the scores less, and a
side bias. Both have normal priors around 0, of which the mode is taken: a rater with few votes is
an average one.

Source: Davidson (1970), JASA 65(329), 317-328.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.reward.comparisons import TIE, Comparisons
from turbo.rewards.vote_reward import VoteHead

PENALTIES = tuple(10 ** (1 - power / 3) for power in range(18))  # on squared weights, from 10 down
PATIENCE = 4  # penalties without a better validation loss
STEPS = 40  # of L-BFGS, with each penalty
RATER_SPREAD = 0.5  # standard deviation of both effects of raters, a prior


class VoteModel(nn.Module):
    """The probabilities of the answers."""

    ties: Tensor

    def __init__(self, head: VoteHead, questions: int, raters: int) -> None:
        super().__init__()
        self.head = head
        self.log_tie = nn.Parameter(torch.zeros(questions))  # log nu
        self.temperature = nn.Parameter(torch.zeros(raters))  # t
        self.bias = nn.Parameter(torch.zeros(raters))  # b
        self.register_buffer("ties", torch.ones(questions, dtype=torch.bool))  # offered at all

    def forward(
        self, features: Float[Tensor, "C D"], votes: Comparisons, rows: Int[Tensor, " N"]
    ) -> Float[Tensor, "N 3"]:
        """Return the log-probability of each answer of some votes."""
        eta = self.advantage(features, votes, rows) * self.temperature[votes.rater[rows]].exp()
        eta = eta + self.bias[votes.rater[rows]] * votes.left[rows]
        question = votes.question[rows]
        tie = self.log_tie[question].masked_fill(~self.ties[question], -torch.inf)
        return torch.stack([eta / 2, -eta / 2, tie], dim=1).log_softmax(dim=1)

    def advantage(
        self, features: Float[Tensor, "C D"], votes: Comparisons, rows: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Return how much higher a scores than b, by the question of each vote."""
        scores, question = self.head(features), votes.question[rows]
        return scores[votes.first[rows], question] - scores[votes.second[rows], question]

    def prior(self) -> Float[Tensor, ""]:
        """Return the negative log-prior of the raters' effects."""
        squares = self.temperature.square().sum() + self.bias.square().sum()
        return squares / (2 * RATER_SPREAD**2)


@dataclass(frozen=True)
class Fitted:
    """A fitted model, and how it was found."""

    model: VoteModel
    loss: float  # mean of -log P(answer) on the validation votes
    penalty: float


def fit_votes(features: Float[Tensor, "C D"], votes: Comparisons) -> Fitted:
    """Fit with smaller and smaller penalties on squared weights, until validation gets worse.

    Args:
        features: of each clip.
    """
    train, validation = votes.votes_of("train"), votes.votes_of("validation")
    model = start_model(features, votes, train)

    best, worse = Fitted(model, float("inf"), 0.0), 0
    for penalty in PENALTIES:
        _minimise(model, features, votes, train, penalty)
        with torch.no_grad():
            loss = float(answer_losses(model, features, votes, validation).mean())
        worse = worse + 1 if loss >= best.loss else 0
        if not worse:
            best = Fitted(copy.deepcopy(model), loss, penalty)
        elif worse == PATIENCE:
            break
    return best


def fit_baseline(features: Float[Tensor, "C D"], votes: Comparisons) -> VoteModel:
    """Fit ties and side biases to the training votes, with all scores 0: the clips are ignored."""
    train = votes.votes_of("train")
    model = start_model(features, votes, train)
    model.head.requires_grad_(False)
    _minimise(model, features, votes, train, penalty=0.0)
    return model


def _minimise(
    model: VoteModel, features: Tensor, votes: Comparisons, rows: Tensor, penalty: float
) -> None:
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimiser.zero_grad()
        loss = answer_losses(model, features, votes, rows).mean() + model.prior() / len(rows)
        loss = loss + penalty * model.head.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(cost)


def answer_losses(
    model: VoteModel, features: Tensor, votes: Comparisons, rows: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Return -log P(answer) of each vote."""
    return -model(features, votes, rows).gather(1, votes.answer[rows][:, None])[:, 0]


def start_model(features: Tensor, votes: Comparisons, train: Tensor) -> VoteModel:
    """Return the model to start from: no preference, and ties at their observed rate."""
    head = VoteHead(features.shape[1], len(votes.questions))
    seen = features[torch.cat([votes.first[train], votes.second[train]]).unique()]
    head.mean.copy_(seen.mean(dim=0))
    head.scale.copy_(seen.std(dim=0) + 1e-6)
    model = VoteModel(head, len(votes.questions), int(votes.rater.max()) + 1)
    ties = votes.answer == TIE
    for question in range(len(votes.questions)):
        asked = votes.question == question
        model.ties[question] = bool(ties[asked].any())
        count, tied = asked[train].sum(), ties[train][asked[train]].sum()
        share = (tied + 0.5) / (count + 1)
        model.log_tie.data[question] = (2 * share / (1 - share)).log()  # share = nu / (2 + nu)
    return model
