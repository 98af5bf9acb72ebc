"""The Results tab never shows a simulated vote as a person's."""

import pytest

from human_eval.study.simulation import Crowd, simulate
from tests.demo.web.test_server import call_tab
from tests.support.apart import run_apart
from tests.support.page_server import claim, enter, run_page_server, sign_in, vote


async def choose_pair(server, researcher, number, votes) -> tuple[object, str]:
    """Return the number and the pair that the tab shows then."""
    reply = await call_tab(server, "on_pair", [number, votes], researcher)
    new_number, pair = reply.json()["data"]
    return number if isinstance(new_number, dict) else new_number, pair


@pytest.mark.parametrize("chosen", [None, "A simulation"])
def test_a_simulated_pair_is_stamped_and_shown_first_where_no_person_has_voted(tmp_path, chosen):
    async def scene():
        async with run_page_server(tmp_path) as server, server.visitor() as researcher:
            simulate(server.store, Crowd(raters=4, abandon=0.0))
            await sign_in(researcher)

            number, shown = await choose_pair(server, researcher, 2, chosen)

            assert number == 2
            assert shown.count('class="stamp"') == 1 and "<video" in shown
            assert await choose_pair(server, researcher, 2, "People") == (2, "")

    run_apart(scene())


def test_a_pair_of_people_has_no_stamp_and_a_number_of_their_list(tmp_path):
    async def scene():
        async with run_page_server(tmp_path) as server, server.visitor() as researcher:
            simulate(server.store, Crowd(raters=4, abandon=0.0))
            await enter(server.client)
            await vote(server.client, (await claim(server.client))["assignment"])
            await sign_in(researcher)

            for votes in ("People", None):
                number, shown = await choose_pair(server, researcher, 9, votes)
                assert number == 1
                assert "<video" in shown and "stamp" not in shown

    run_apart(scene())
