import dataclasses
import re
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from PIL import Image

from human_eval.definition.definition import Comparison, load_definition
from human_eval.errors import StudyError
from human_eval.reporting.charts import (
    COLOURS,
    DPI,
    MAX_COMPARISONS,
    SMALLEST,
    choose_sides,
    describe_win_rates,
    draw_e_values,
    draw_panels,
    draw_win_rates,
    render_chart,
)
from human_eval.reporting.win_rate_rows import answers_in_legend, win_rate_rows
from human_eval.statistics.e_values import e_value_path
from human_eval.statistics.win_rates import win_rates
from tests.support.crowd import define_pair, make_votes


@pytest.fixture(scope="module")
def definition():
    return load_definition("t2v-turbo")


@pytest.fixture(scope="module")
def table(definition):
    return win_rates(make_votes(definition, prompts=12, rates={("C3", "Q3"): 0.9}), definition)


def texts(figure) -> str:
    found = figure.findobj(matplotlib.text.Text)
    return "\n".join(text.get_text() for text in found)


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_the_same_table_gives_the_same_bytes(table, definition, kind):
    first, second = (draw_win_rates(table.iloc[:3], definition) for _ in range(2))

    assert render_chart(first, kind) == render_chart(second, kind)


def test_bars_are_shares_of_all_votes(table, definition):
    figure = draw_win_rates(table, definition)
    _, bars, _ = figure.axes

    widths = {}
    for bar in bars.patches:
        colour = matplotlib.colors.to_hex(bar.get_facecolor())
        widths.setdefault(colour, []).append(bar.get_width())
    assert widths[COLOURS["a"]] == pytest.approx(table["wins"] / table["votes"])
    assert np.sum(list(widths.values()), axis=0) == pytest.approx(np.ones(len(table)))


def test_the_chart_draws_the_shared_rows_in_their_order(definition):
    votes = make_votes(definition, prompts=12, rates={("C3", "Q3"): 0.9})
    mixed = votes.assign(choice=votes["choice"].where(votes["vote_id"] % 7 > 0, "both_bad"))
    table = win_rates(mixed, definition)
    rows = win_rate_rows(table, definition)

    questions, bars, rates = draw_win_rates(table, definition).axes

    assert [(row.comparison, row.question.key) for row in rows] == [
        (f"C{c}", f"Q{q}") for c in range(1, 7) for q in range(1, 4)
    ]
    keys = [text.get_text() for text in questions.texts]
    assert [key for key in keys if re.fullmatch(r"Q\d", key)] == [row.question.key for row in rows]
    widths = np.reshape([bar.get_width() for bar in bars.patches], (4, len(rows))).T
    shares = [[segment.share for segment in row.segments] for row in rows]
    assert widths == pytest.approx(np.array(shares))
    assert np.sum(shares, axis=1) == pytest.approx(np.ones(len(rows)))
    labels = [text.get_text() for text in bars.texts if text.get_text()[0].isdigit()]
    drawn = [[row.segments[place].label for row in rows] for place in range(4)]
    assert labels == [label for column in drawn for label in column if label]
    for row, text in zip(rows, rates.texts, strict=True):
        for label in (row.rate_label, row.interval_label, row.votes_label):
            assert label in text.get_text()
    assert answers_in_legend(rows) == ["a", "both_bad", "b"]


def test_rows_of_ties_only_have_no_rate():
    pair = define_pair()
    [row] = win_rate_rows(win_rates(make_votes(pair).assign(choice="tie"), pair), pair)

    assert (row.rate_label, row.interval_label, row.votes_label) == ("ties only", "", "n = 0 of 90")
    assert [segment.label for segment in row.segments] == ["", "100.0", "", ""]


def test_intervals_numbers_and_names_are_printed(table, definition):
    written = texts(draw_win_rates(table, definition))

    row = table[(table["comparison"] == "C3") & (table["question"] == "Q3")].iloc[0]
    bounds = rf"{100 * row['rate']:.1f}.? \[{100 * row['low']:.1f}, {100 * row['high']:.1f}\]"
    assert re.search(rf"{bounds}\s+n = 36", written)
    for system in ("T2V-Turbo (VC2) 4-step", "ModelScopeT2V 50-step DDIM"):
        assert system in written
    assert "clustered by prompt and rater" in written
    assert "SIMULATED" not in written


def test_marked_intervals_are_those_of_the_table(table, definition):
    _, _, rates = draw_win_rates(table, definition).axes

    drawn = [line.get_xdata() for line in rates.lines if len(line.get_xdata()) == 2]
    drawn = np.array([ends for ends in drawn if ends[0] != ends[1]])
    assert drawn == pytest.approx(table[["low", "high"]].to_numpy())


def test_simulated_votes_are_marked_across_the_chart(table, definition):
    assert "SIMULATED VOTES" in texts(draw_win_rates(table, definition, simulated=True))
    path = e_value_path(make_votes(define_pair()))
    assert "SIMULATED VOTES" in texts(
        draw_e_values({"C1": path}, 20, define_pair(), simulated=True)
    )


def test_text_of_others_is_shown_as_it_stands():
    pair = define_pair()
    odd = "$x^2$ <script> % & \\alpha {0}"
    definition = type(pair)(
        **{**vars(pair), "systems": tuple(type(s)(key=s.key, title=odd) for s in pair.systems)}
    )
    figure = draw_win_rates(win_rates(make_votes(pair), pair), definition)

    assert texts(figure).count(odd) == 2
    assert render_chart(figure, "svg")


def test_ties_and_cells_of_ties_are_drawn():
    pair = define_pair()
    votes = make_votes(pair)
    half = votes.assign(choice=["tie", "a"] * (len(votes) // 2))

    written = texts(draw_win_rates(win_rates(votes.assign(choice="tie"), pair), pair))
    assert "ties only" in written
    assert "tie" in texts(draw_win_rates(win_rates(half, pair), pair)).split("\n")


def test_png_has_the_size_and_ink_of_a_chart(table, definition):
    content = BytesIO(render_chart(draw_win_rates(table, definition), "png"))

    with Image.open(content) as image:
        assert image.width == 2100
        colours = {colour for _, colour in image.convert("RGB").getcolors(10**7)}
    assert matplotlib.colors.to_rgb(COLOURS["a"]) in {
        tuple(channel / 255 for channel in colour) for colour in colours
    }


LONG = "A system with a very long name, and itsunbreakableword"


def printed(figure) -> list[matplotlib.text.Text]:
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    beyond = {  # ticks beyond the limits of their axis are not drawn
        tick.label1
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    found = figure.findobj(matplotlib.text.Text)
    return [
        text
        for text in found
        if text.get_text() and text not in beyond and text.get_window_extent().width > 1
    ]


def rename(definition, title):
    systems = tuple(
        dataclasses.replace(system, title=f"{title} {number}")
        for number, system in enumerate(definition.systems)
    )
    return dataclasses.replace(definition, systems=systems)


@pytest.mark.parametrize(
    "width, title",
    [(1.75, "Ours"), (3.25, "Ours"), (3.25, LONG), (5.5, LONG), (6.75, "Ours"), (12.0, LONG)],
)
def test_print_is_at_least_7_points_and_stays_apart_at_every_width(table, definition, width, title):
    shown = rename(definition, title)
    figures = [draw_panels(table.iloc[:5], shown, width=width)]
    if width > 3:
        path = e_value_path(make_votes(define_pair()))
        figures.append(draw_e_values({"C1": path, "C2": path}, 20, shown, width=width))

    for figure in figures:
        words = printed(figure)
        assert figure.get_figwidth() == width
        assert min(text.get_fontsize() for text in words) >= SMALLEST
        boxes = [text.get_window_extent().padded(-0.5) for text in words]
        right, top = figure.bbox.max
        for number, box in enumerate(boxes):
            assert 0 <= box.x0 and box.x1 <= right and 0 <= box.y0 and box.y1 <= top
            assert not box.count_overlaps(boxes[number + 1 :]), words[number].get_text()


def test_long_names_keep_seven_points_in_the_chart_for_a_screen(table, definition):
    named = rename(definition, "A system with a name of no less than forty letters")

    words = printed(draw_win_rates(table.iloc[:3], named))

    assert min(text.get_fontsize() for text in words) >= SMALLEST
    first, second = (text.get_window_extent() for text in words if "A system" in text.get_text())
    assert not first.overlaps(second)


def test_numbers_never_cover_the_interval_of_a_rate_near_one():
    pair = define_pair()
    votes = make_votes(pair, prompts=60, rates={("C1", "Q1"): 0.95})
    votes.loc[votes["vote_id"] % 7 == 0, "choice"] = "tie"
    rates = draw_win_rates(win_rates(votes, pair), pair).axes[2]

    rates.figure.draw_without_rendering()

    lines = [line.get_window_extent() for line in rates.lines if line.get_linewidth() == 1.6]
    for line, text in zip(lines, rates.texts, strict=True):
        assert line.x1 < text.get_window_extent().x0


def test_panels_are_the_papers_two_rows_of_three_or_one_column(table, definition):
    def places(figure):
        return sorted({round(text.get_position()[0]) for text in figure.axes[0].texts
                       if text.get_text() == "Q1"})  # fmt: skip

    assert [len(places(draw_panels(table, definition, width=w))) for w in (3.25, 6.75)] == [1, 3]
    assert len(places(draw_panels(table, definition, width=6.75, columns=2))) == 2
    with pytest.raises(StudyError, match="cannot have 3 panels"):
        draw_panels(table, definition, width=3.25, columns=3)
    with pytest.raises(StudyError, match="another width"):
        draw_panels(table, definition, width=1.0)


def test_sides_may_be_the_systems_where_there_is_one_on_each(definition):
    assert choose_sides(["systems"], define_pair()) == ("Ours", "Theirs")
    assert choose_sides(["ours", "baseline"], definition) == ("ours", "baseline")
    with pytest.raises(StudyError, match="systems on one side"):
        choose_sides(["systems"], definition)


def test_panels_print_every_row_and_the_given_words(table, definition):
    figure = draw_panels(table, definition, width=6.75, sides=("ours", "baseline"), simulated=True)

    written = texts(figure)
    for row in win_rate_rows(table, definition):
        assert row.interval_label in written and row.votes_label in written
    assert "prefer ours" in written and "prefer baseline" in written
    assert "SIMULATED" in written


def test_the_caption_explains_marks_words_comparisons_and_questions(table, definition):
    caption = describe_win_rates(table, definition, sides=("ours", "baseline"))

    assert "won by ours (" in caption and "clustered by prompt and rater (" in caption
    for question in definition.questions:
        assert question.wording in caption
    for system in definition.systems:
        assert system.title in caption


def test_evidence_has_the_names_and_colours_of_the_main_figure():
    votes = make_votes(define_pair(), rates={("C1", "Q1"): 0.2})

    figure = draw_e_values({"C1": e_value_path(votes)}, 20, define_pair())

    assert "Ours vs. Theirs" in texts(figure)
    assert matplotlib.colors.to_hex(figure.axes[0].lines[0].get_color()) == COLOURS["b"]


def test_evidence_of_many_comparisons_shows_those_with_the_most_votes():
    path = e_value_path(make_votes(define_pair()))
    keys = [f"C{number}" for number in range(MAX_COMPARISONS + 1)]
    pair = define_pair()
    opponents = [dataclasses.replace(pair.systems[1], key=key) for key in keys]
    comparisons = [Comparison(key=key, a="ours", b=key) for key in keys]
    definition = dataclasses.replace(
        pair, systems=(pair.systems[0], *opponents), comparisons=tuple(comparisons)
    )
    paths = {key: path for key in keys} | {"C5": path[:3]}

    axes = draw_e_values(paths, 20, definition).axes[0]

    lengths = [len(line.get_xdata()) for line in axes.lines[:-1]]
    assert lengths == [len(path)] * MAX_COMPARISONS
    assert str(len(keys)) in axes.get_title()


def test_the_words_at_the_threshold_stay_inside_the_evidence_chart():
    path = e_value_path(make_votes(define_pair()))
    figure = draw_e_values({"C1": path}, 1.1 * path["e"].max(), define_pair(), width=3.25)

    [words] = [text for text in printed(figure) if "decided" in text.get_text()]

    assert words.get_window_extent().y1 < figure.axes[0].bbox.y1


def test_nothing_is_drawn_of_nothing(definition, table):
    with pytest.raises(StudyError, match="no votes to draw"):
        draw_win_rates(table.iloc[:0], definition)
