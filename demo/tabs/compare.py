"""The Compare tab: one prompt and one seed through several models, played in step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from demo.api import describe_clip, describe_update
from demo.context import ONE_AT_A_TIME, QUIET, Studio, at_rest, connect_stop, toast
from demo.engine import EngineError
from demo.requests import RequestError, read_request, read_seed
from demo.session import Clip, Contender, Request
from demo.tabs.notice import Notice
from demo.widgets.player import Tile, build_synced_player, show_tiles
from demo.widgets.status import StepClock, show_idle, show_refusal, show_update


@dataclass(frozen=True)
class _Parts:
    """The components of the tab that its handlers speak to."""

    prompt: gr.Textbox
    notice: Notice
    seed: gr.Number
    dice: gr.Button
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    player: gr.HTML


def build_compare_tab(studio: Studio) -> None:
    """Lay out the comparison inside the `gr.Blocks` that is open."""
    parts = _lay_out(studio)
    parts.dice.click(lambda: read_seed(None), None, parts.seed, **QUIET)
    _connect_comparison(studio, parts)
    _open_api(studio)


def _lay_out(studio: Studio) -> _Parts:
    examples = studio.models[studio.default_model].world.examples
    gr.HTML(
        "<p>The same prompt and the same seed through every model. Teachers guide "
        "classifier-free, two network passes a step; students read the guidance as an "
        "input w, one pass a step.</p>",
        elem_classes="lead-in",
    )
    with gr.Row(elem_classes="compare-dials"):
        prompt = gr.Textbox(
            examples[-1],
            label="Prompt to compare",
            scale=5,
            min_width=280,
            elem_id="compare-prompt",
        )
        seed = gr.Number(
            0, label="Seed to compare", precision=0, scale=2, min_width=120, elem_id="compare-seed"
        )
        dice = gr.Button("⚄ New seed", size="sm", scale=0, min_width=120, elem_id="compare-dice")
    notice = Notice(studio.models, prompt)
    notice.connect(gr.State(studio.default_model))
    with gr.Row(elem_classes="actions"):
        run = gr.Button("Compare", variant="primary", scale=3, min_width=120, elem_id="compare")
        stop = gr.Button(
            "Stop",
            variant="stop",
            scale=1,
            min_width=80,
            interactive=False,
            elem_id="compare-stop",
        )
    status = gr.HTML(show_idle(), elem_id="compare-status")
    player = build_synced_player()
    return _Parts(prompt, notice, seed, dice, run, stop, status, player)


def read_comparison(studio: Studio, prompt: object, seed: object) -> list[Request]:
    """Return one request for each contender: same prompt, same seed, each model's own guidance.

    Raises:
        RequestError: the prompt or the seed cannot be used.
    """
    seed = read_seed(seed)
    return [
        read_request(studio.models, prompt, contender.model, contender.steps, None, seed)
        for contender in studio.contenders
    ]


def lay_tiles(contenders: Sequence[Contender], clips: Sequence[Clip]) -> list[Tile]:
    """Return a tile for each contender; those after the finished ones wait."""
    tiles = [
        Tile(title=contender.title, clip=clip)
        for contender, clip in zip(contenders, clips, strict=False)
    ]
    notes = ["computing", *["waiting"] * len(contenders)]
    for contender, note in zip(contenders[len(clips) :], notes, strict=False):
        tiles.append(Tile(title=contender.title, note=note))
    return tiles


def _connect_comparison(studio: Studio, parts: _Parts) -> None:
    notice = parts.notice

    def on_compare(prompt: str, seed: int) -> Iterator[dict[Any, Any]]:
        clips: list[Clip] = []
        try:
            requests = read_comparison(studio, prompt, seed)
            yield {
                parts.run: gr.Button(interactive=False),
                parts.stop: gr.Button(interactive=True),
                parts.seed: requests[0].seed,
                **notice.updates(requests[0].prompt, studio.default_model),
            }
            for contender, request in zip(studio.contenders, requests, strict=True):
                yield {parts.player: show_tiles(lay_tiles(studio.contenders, clips))}
                clock, prefix = StepClock(), f"{contender.title} · "

                def show(
                    update: Any, clock: StepClock = clock, prefix: str = prefix
                ) -> dict[Any, Any]:
                    return {parts.status: show_update(update, clock.remaining(update), prefix)}

                clips.append((yield from studio.run(request, show)))
        except (RequestError, EngineError) as error:
            yield {parts.status: show_refusal(str(error)), **at_rest(parts.run, parts.stop)}
            title = "Not started" if isinstance(error, RequestError) else "Not finished"
            raise toast(error, title) from None
        yield {
            parts.player: show_tiles(lay_tiles(studio.contenders, clips)),
            parts.status: show_idle(_verdict(studio.contenders, clips)),
            **at_rest(parts.run, parts.stop),
        }

    outputs = [parts.player, parts.status, parts.run, parts.stop, parts.seed]
    comparing = gr.on(
        [parts.run.click, parts.prompt.submit],
        on_compare,
        [parts.prompt, parts.seed],
        [*outputs, notice.group, notice.text, notice.suggestion],
        concurrency_id=ONE_AT_A_TIME,
        concurrency_limit=1,
        trigger_mode="once",
        show_progress="minimal",  # the place in the queue, until the first update
        show_progress_on=parts.status,
        api_visibility="private",
    )
    connect_stop([comparing], parts.run, parts.stop, parts.status)


def _verdict(contenders: Sequence[Contender], clips: Sequence[Clip]) -> str:
    """Say how many times faster the quickest model was than the slowest."""
    totals = [clip.seconds["total"] for clip in clips]
    slow, fast = totals.index(max(totals)), totals.index(min(totals))
    ratio = totals[slow] / max(totals[fast], 1e-9)
    return (
        f"Done. {contenders[fast].title} took {totals[fast]:.2f} s, "
        f"{contenders[slow].title} {totals[slow]:.2f} s: {ratio:.1f} times as long."
    )


def _open_api(studio: Studio) -> None:
    def compare(prompt: str, seed: int | None = None) -> Iterator[dict[str, Any]]:
        """Make one video with every contender of the Compare tab, same prompt and same seed.

        Parameters:
            prompt: what the videos show, at most 1000 characters.
            seed: 0 to 4294967295; none draws one and reports it in the recipes.

        Returns:
            Progress while it runs (stage, step, steps, seconds); at last the rows, each with
            its title, video, recipe, seconds by stage, and network calls.
        """
        rows: list[dict[str, Any]] = []
        try:
            requests = read_comparison(studio, prompt, seed)
            for contender, request in zip(studio.contenders, requests, strict=True):
                clip = yield from studio.run(request, describe_update)
                rows.append({"title": contender.title, **describe_clip(clip)})
        except (RequestError, EngineError) as error:
            raise toast(error, type(error).__name__) from None
        yield {"stage": "done", "rows": rows}

    gr.api(compare, api_name="compare", concurrency_id=ONE_AT_A_TIME, concurrency_limit=1)
