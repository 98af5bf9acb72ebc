"""Statistics of public votes against independent code: the authors', choix, irrCAC, statsmodels.

The votes come in as a reader's would, through `import-votes` and a mapping. `public_data/README.md`
names their sources. Numbers written here were computed by the package that is named beside them.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from statsmodels.api import GLM, families

from human_eval.reporting.foreign_study import define_study, make_frame
from human_eval.reporting.foreign_votes import load_mapping, read_foreign_votes
from human_eval.statistics.agreement import tabulate_agreement
from human_eval.statistics.bradley_terry import ANSWERS, count_votes, fit_strengths
from human_eval.statistics.ranking import rank_systems
from human_eval.statistics.win_rates import win_rates

DATA = Path(__file__).parent / "public_data"
LLMFAO = """\
[columns]
prompt = "prompt"
rater = "worker"
system_a = "left"
system_b = "right"
choice = "winner"

[choices]
left = "a"
right = "b"
tie = "tie"
"""
NCP = """\
[columns]
system_a = "first"
system_b = "second"
choice = "QUESTION"

[choices]
first = "a"
second = "b"
same = "tie"
"""
CEMS = """\
[columns]
prompt = "prompt"
rater = "student"
system_a = "first"
system_b = "second"
choice = "choice"

[choices]
1 = "a"
2 = "b"
"=" = "tie"
"""
# The share, in percent, that each first model won of the decisive votes, as the authors' notebook
# `evaluation/Evaluating Models.ipynb` prints it.
PAIRS = [
    ("basesft_7b", "base7b"), ("basewr_7b", "base7b"), ("basewr_7b", "basesft_7b"),
    ("trained_7b", "basesft_7b"), ("trained_7b", "base7b"), ("trained_7b", "basewr_7b"),
]  # fmt: skip
PRINTED = {
    "plot": (5.263158, 72.222222, 83.333333, 89.473684, 52.941176, 62.500000),
    "character": (26.315789, 68.750000, 84.210526, 89.473684, 46.666667, 61.538462),
    "creativity": (21.052632, 57.142857, 82.352941, 84.210526, 81.250000, 70.588235),
    "development": (22.222222, 68.750000, 88.235294, 89.473684, 52.941176, 66.666667),
    "language": (35.000000, 66.666667, 76.470588, 88.888889, 80.000000, 58.823529),
    "overall_quality": (15.000000, 66.666667, 83.333333, 90.000000, 76.470588, 64.705882),
}
# choix 0.4.1, ilsr_pairwise of the decisive votes
STORY_STRENGTHS = {
    "plot": (0.29907359, -1.60000533, 0.58963265, 0.71129909),
    "character": (0.09855818, -1.17121033, 0.5123293, 0.56032285),
    "creativity": (-0.09111718, -1.17802929, 0.22922684, 1.03991963),
    "development": (0.10989311, -1.32586622, 0.50934823, 0.70662488),
    "language": (-0.35920473, -0.95500354, 0.39626663, 0.91794164),
    "overall_quality": (-0.05576878, -1.42810402, 0.45506989, 1.02880291),
}
MODEL_STRENGTHS = {
    "Dolly v2 (12B)": 0.05849668, "Luminous Base": -0.43831115,
    "Luminous Extended": -0.19612209, "Open-Assistant Pythia SFT-4 (12B)": -0.43578261,
    "Open-Assistant StableLM SFT-7 (7B)": -0.18961862, "StarCoderChat Alpha (16B)": 0.10290589,
    "Weaver 12k": 0.2732222, "command-light": 0.8252097,
}  # fmt: skip
SCHOOL_STRENGTHS = {
    "Barcelona": -0.12264947, "London": 1.03600227, "Milano": -0.3075241, "Paris": 0.28322337,
    "St.Gallen": -0.13543315, "Stockholm": -0.75361892,
}  # fmt: skip
# irrCAC 0.4.4: Krippendorff's alpha and Gwet's AC1, nominal, pairs by raters
SCHOOL_AGREEMENT = (0.0845688972, 0.2538739945)
AGREEMENT = {
    ("Open-Assistant StableLM SFT-7 (7B)", "Weaver 12k"): (0.0910569106, 0.2063538929),
    ("Weaver 12k", "command-light"): (0.1220238095, 0.1422740702),
    ("Open-Assistant Pythia SFT-4 (12B)", "Weaver 12k"): (0.1442405708, 0.2259948541),
    ("StarCoderChat Alpha (16B)", "Weaver 12k"): (0.2999357739, 0.3850362793),
    ("Dolly v2 (12B)", "Weaver 12k"): (0.3435013263, 0.3598194363),
    ("Luminous Base", "Weaver 12k"): (0.0303983229, 0.2522687668),
    ("Dolly v2 (12B)", "Open-Assistant StableLM SFT-7 (7B)"): (0.5, 0.5950920245),
    ("Luminous Extended", "Weaver 12k"): (0.0576923077, 0.4507573881),
    ("Luminous Base", "Open-Assistant StableLM SFT-7 (7B)"): (-0.1458333333, 0.0497737557),
    ("Open-Assistant Pythia SFT-4 (12B)", "command-light"): (0.0131578947, -0.071863581),
}


@pytest.fixture
def read(tmp_path):
    def read(name, mapping):
        (tmp_path / "mapping.toml").write_text(mapping)
        path = DATA / name
        if mapping == CEMS:  # counts; who gave which answer matters to none of the numbers below
            wide = pd.read_csv(path).melt(["first", "second"], var_name="choice", value_name="n")
            table = wide.loc[wide.index.repeat(wide["n"])].assign(prompt="Europe")
            table["student"] = table.groupby(["first", "second"]).cumcount()
            path = tmp_path / name
            table.to_csv(path, index=False)
        votes = read_foreign_votes(path, load_mapping(str(tmp_path / "mapping.toml")))
        assert not votes.bad
        definition = define_study(votes, title=name)
        return make_frame(votes, definition), definition

    return read


def _by_title(values, definition):
    return {definition.system(key).title: value for key, value in values.items()}


def _poisson_davidson(tallies):
    """Return strengths and nu as the coefficients of a log-linear model of the counts.

    Source: Dittrich and Hatzinger (2009), Psychology Science Quarterly 51(2), 170-187.
    """
    systems, comparisons = len(tallies.names), len(tallies.pairs)
    design = np.zeros((comparisons, len(ANSWERS), systems + 1 + comparisons))
    for number, (first, second) in enumerate(tallies.pairs):
        design[number, 0, first] += 0.5
        design[number, 0, second] -= 0.5
        design[number, 1] = -design[number, 0]
        design[number, 2, systems] = 1
        design[number, :, systems + 1 + number] = 1
    design = np.delete(design.reshape(comparisons * len(ANSWERS), -1), 0, axis=1)  # a reference
    fit = GLM(tallies.votes.ravel(), design, family=families.Poisson()).fit(tol=1e-12)
    strengths = np.append(0.0, fit.params[: systems - 1])
    return strengths - strengths.mean(), np.exp(fit.params[systems - 1])


@pytest.mark.parametrize("question", PRINTED)
def test_shares_and_strengths_of_stories_are_those_of_the_authors_and_of_choix(read, question):
    votes, definition = read("ncp.csv", NCP.replace("QUESTION", question))

    rates = win_rates(votes, definition)
    decisive = votes[votes["choice"] != "tie"]
    strengths = fit_strengths(count_votes(decisive))[0]

    shares = {}
    for row in rates.to_dict("records"):
        first, second = (definition.system(row[side]).title for side in ("system_a", "system_b"))
        shares |= {(first, second): 100 * row["rate"], (second, first): 100 - 100 * row["rate"]}
    assert [shares[pair] for pair in PAIRS] == pytest.approx(PRINTED[question], abs=1e-5)
    found = _by_title(strengths, definition)
    assert [found[name] for name in sorted(found)] == pytest.approx(
        STORY_STRENGTHS[question], abs=1e-5
    )


@pytest.mark.parametrize(
    "name, mapping",
    [("ncp.csv", NCP.replace("QUESTION", "plot")), ("llmfao.csv", LLMFAO), ("cems.csv", CEMS)],
)
def test_strengths_with_ties_are_those_of_a_log_linear_model(read, name, mapping):
    votes, _ = read(name, mapping)
    tallies = count_votes(votes)

    table = rank_systems(votes).set_index("system")

    strengths, nu = _poisson_davidson(tallies)
    assert table["strength"][tallies.names].to_numpy() == pytest.approx(strengths, abs=1e-5)
    assert table["tie"].iloc[0] == pytest.approx(nu, abs=1e-5)


def test_shares_strengths_and_agreement_of_a_crowd_are_those_of_independent_code(read):
    votes, definition = read("llmfao.csv", LLMFAO)
    raw = pd.read_csv(DATA / "llmfao.csv")

    rates = win_rates(votes, definition)
    agreement = tabulate_agreement(votes, definition).set_index("comparison")
    strengths = fit_strengths(count_votes(votes[votes["choice"] != "tie"]))[0]

    winner = raw["left"].where(raw["winner"] == "left", raw["right"])[raw["winner"] != "tie"]
    compared = {}
    for row in rates.to_dict("records"):
        pair = tuple(definition.system(row[side]).title for side in ("system_a", "system_b"))
        compared[pair] = row["comparison"]
        met = raw[["left", "right"]].isin(pair).all(axis=1)
        assert row["rate"] == pytest.approx((winner[met] == pair[0]).mean(), abs=1e-12, nan_ok=True)
    found = agreement.loc[[compared[pair] for pair in AGREEMENT], ["alpha", "ac1"]]
    assert found.to_numpy() == pytest.approx(np.array(list(AGREEMENT.values())), abs=1e-5)
    assert _by_title(strengths, definition) == pytest.approx(MODEL_STRENGTHS, abs=1e-5)


def test_shares_strengths_and_agreement_of_students_on_schools_are_those_of_independent_code(read):
    votes, definition = read("cems.csv", CEMS)
    raw = pd.read_csv(DATA / "cems.csv").set_index(["first", "second"])

    rates = win_rates(votes, definition)
    strengths = fit_strengths(count_votes(votes[votes["choice"] != "tie"]))[0]
    # Agreement is that of pairs; here every two schools are one.
    pairs = votes.assign(comparison="C1", prompt_index=pd.factorize(votes["comparison"])[0])
    agreement = tabulate_agreement(pairs, definition)

    for row in rates.to_dict("records"):
        schools = tuple(definition.system(row[side]).title for side in ("system_a", "system_b"))
        answers = raw.loc[schools]
        assert row["rate"] == pytest.approx(answers["1"] / (answers["1"] + answers["2"]), abs=1e-12)
        assert row["raters"] == row["votes"] == answers.sum()
    assert len(rates) == 15 and agreement["pairs"].item() == 15
    assert _by_title(strengths, definition) == pytest.approx(SCHOOL_STRENGTHS, abs=1e-5)
    found = agreement[["alpha", "ac1"]].iloc[0].tolist()
    assert found == pytest.approx(SCHOOL_AGREEMENT, abs=1e-5)
