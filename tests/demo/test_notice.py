"""The notice below a prompt: what a request may not have gets no suggestion."""

import gradio as gr
import pytest

from demo.tabs.notice import Notice
from tests.support.apart import run_apart
from tests.support.fake_engine import MODELS

UNKNOWN = "a corgi surfing at sunset"


async def lay_out() -> gr.Blocks:
    with gr.Blocks() as page:
        prompt, run = gr.Textbox(), gr.Button()
        Notice(MODELS, prompt).connect(gr.State("fake-student"), run)
    return page


@pytest.fixture
def handlers():
    """The functions of the notice: on a change, and on a click on the suggestion."""
    return [function.fn for function in run_apart(lay_out()).fns.values()]


def is_visible(shown) -> bool:
    return next(value.visible for part, value in shown.items() if isinstance(part, gr.Group))


def test_a_prompt_of_other_words_gets_a_notice_and_its_suggestion_is_known(handlers):
    on_change, on_suggestion = handlers

    assert is_visible(on_change(UNKNOWN, "fake-student"))
    taken = on_suggestion(UNKNOWN, "fake-student")
    [known] = [value for part, value in taken.items() if isinstance(part, gr.Textbox)]
    assert MODELS["fake-student"].world.knows(known)
    assert not is_visible(taken) and not is_visible(on_change(known, "fake-student"))


@pytest.mark.parametrize(
    "prompt, model",
    [
        (None, "fake-student"),
        ({"a": 1}, "fake-student"),
        ("  ", "fake-student"),
        ("corgi " * 200, "fake-student"),
        (UNKNOWN, "gone"),
        (UNKNOWN, ["fake-student"]),
        (UNKNOWN, None),
    ],
)
def test_what_generate_would_refuse_gets_no_notice_and_changes_no_prompt(handlers, prompt, model):
    on_change, on_suggestion = handlers

    assert not is_visible(on_change(prompt, model))
    taken = on_suggestion(prompt, model)
    assert not is_visible(taken)
    assert not any(isinstance(part, gr.Textbox) for part in taken)
