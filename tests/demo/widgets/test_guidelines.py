"""The line above the page: its link to report a video."""

import re

from demo.widgets.guidelines import show_guidelines


def test_reports_go_to_the_mailbox_or_the_address_of_the_operator():
    with gr.Blocks():
        lines = [show_guidelines(to) for to in (None, "ada@lab.example", "https://r.example")]

    assert [re.findall(r'class="report" href="([^"]*)"', line) for line in lines] == [
        [],
        ["mailto:ada@lab.example?subject=Report"],
        ["https://r.example"],
    ]
