"""The Compare tab: one prompt and one seed through several models, with synchronised players."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from demo.context import NO_QUEUE, ONE_AT_A_TIME, PageContext, warn
from demo.models import Request, RequestError, draw_seed, read_request
from demo.session import CompareRow, EngineError, GeneratedClip
from demo.tabs.notice import Notice
from demo.widgets.player import Tile, build_synced_player, show_tiles
from demo.widgets.status import (
    StatusLine,
    busy_buttons,
    connect_refusal,
    connect_stop,
    idle_buttons,
    show_idle,
    show_refusal,
)


@dataclass(frozen=True)
class _Parts:
    """The components of the tab."""

    prompt: gr.Textbox
    notice: Notice
    seed: gr.Number
    new_seed: gr.Button
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    player: gr.HTML


def build_compare_tab(context: PageContext, tab: gr.Tab) -> None:
    """Lay out the tab inside the open `gr.Blocks`."""
    parts = _lay_out(context)
    parts.new_seed.click(draw_seed, None, parts.seed, **NO_QUEUE)
    parts.notice.connect(gr.State(_find_small_model(context)), parts.run)
    _connect_comparison(context, parts)


def _lay_out(context: PageContext) -> _Parts:
    examples = context.models[_find_small_model(context)].world.examples
    gr.HTML(
        "<p>Every model gets the same prompt and the same seed. Teachers use classifier-free "
        "guidance, which takes two network passes per step. Students take the guidance scale w as "
        "an input and need one pass per step.</p>",
        elem_classes="lead-in",
    )
    with gr.Row(elem_classes="compare-controls"):
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
        new_seed = gr.Button(
            "⚄ New seed", size="sm", scale=0, min_width=120, elem_id="compare-new-seed"
        )
    with gr.Row(elem_classes="actions"):
        run = gr.Button("Compare", variant="primary", scale=3, min_width=120, elem_id="compare")
        stop = gr.Button(
            "Stop", variant="stop", scale=1, min_width=80, interactive=False, elem_id="compare-stop"
        )
    notice = Notice(context.models, prompt)
    status = gr.HTML(show_idle(), elem_id="compare-status")
    player = build_synced_player()
    return _Parts(prompt, notice, seed, new_seed, run, stop, status, player)


def _find_small_model(context: PageContext) -> str:
    """Return the model of the first row that knows only some words, or else the default model."""
    models = (row.model for row in context.rows if row.model in context.models)
    small = (model for model in models if context.models[model].world.slots)
    return next(small, context.default_model)


def read_comparison(context: PageContext, prompt: object, seed: object) -> list[Request]:
    """Return one request per row: the same prompt and seed, the guidance of the row's model.

    Raises:
        RequestError: the prompt or the seed cannot be used.
    """
    seed = draw_seed() if seed is None else seed
    return [
        read_request(context.models, row.model, prompt, steps=row.steps, seed=seed)
        for row in context.rows
    ]


def make_tiles(rows: Sequence[CompareRow], clips: Sequence[GeneratedClip]) -> list[Tile]:
    """Return a tile per row: the finished clips first, then one in progress, then waiting ones."""
    tiles = [Tile(title=row.title, clip=clip) for row, clip in zip(rows, clips, strict=False)]
    notes = ["computing", *["waiting"] * len(rows)]
    for row, note in zip(rows[len(clips) :], notes, strict=False):
        tiles.append(Tile(title=row.title, note=note))
    return tiles


def _connect_comparison(context: PageContext, parts: _Parts) -> None:
    rows = context.rows

    def run(row: CompareRow, request: Request) -> Generator[dict[Any, Any], None, GeneratedClip]:
        line = StatusLine(f"{row.title} · ")
        return context.engine.run(
            row.model, request, lambda update: {parts.status: line.show(update)}
        )

    def on_compare(prompt: str, seed: int) -> Iterator[dict[Any, Any]]:
        clips: list[GeneratedClip] = []
        try:
            requests = read_comparison(context, prompt, seed)
            yield {parts.seed: requests[0].seed, **busy_buttons(parts.run, parts.stop)}
            for row, request in zip(rows, requests, strict=True):
                yield {parts.player: show_tiles(make_tiles(rows, clips))}
                clips.append((yield from run(row, request)))
        except (RequestError, EngineError) as error:
            yield {parts.status: show_refusal(str(error)), **idle_buttons(parts.run, parts.stop)}
            title = "Not started" if isinstance(error, RequestError) else "Not finished"
            warn(error, title)
            return
        yield {
            parts.player: show_tiles(make_tiles(rows, clips)),
            parts.status: show_idle(_summarise(rows, clips)),
            **idle_buttons(parts.run, parts.stop),
        }

    comparing = gr.on(
        [parts.run.click, parts.prompt.submit],
        on_compare,
        [parts.prompt, parts.seed],
        [parts.player, parts.status, parts.run, parts.stop, parts.seed],
        **ONE_AT_A_TIME,
        trigger_mode="once",
        show_progress="minimal",  # shows the place in the queue until the first update
        show_progress_on=parts.status,
        api_visibility="private",
    )
    connect_refusal(comparing, parts.status)
    connect_stop([comparing], parts.run, parts.stop, parts.status)


def _summarise(rows: Sequence[CompareRow], clips: Sequence[GeneratedClip]) -> str:
    """Compare the slowest row with the fastest one."""
    totals = [clip.seconds["total"] for clip in clips]
    slow, fast = totals.index(max(totals)), totals.index(min(totals))
    ratio = totals[slow] / max(totals[fast], 1e-9)
    return (
        f"Done. {rows[fast].title} took {totals[fast]:.2f} s, "
        f"{rows[slow].title} {totals[slow]:.2f} s: {ratio:.1f} times as long."
    )
