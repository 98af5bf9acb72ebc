"""The API: `/generate` and `/compare`, which share the queue with visitors of the page."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio import FileData

from demo.context import ONE_AT_A_TIME, PageContext, error_message
from demo.models import RequestError, read_request
from demo.recipe_link import link_to
from demo.session import EngineError, GeneratedClip, Update
from demo.tabs.compare import read_comparison


def add_api(context: PageContext) -> None:
    """Add the two endpoints to the open `gr.Blocks`. Clients read their docstrings."""

    def generate(
        prompt: str,
        model: str = context.default_model,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Generate a video from a prompt.

        Parameters:
            prompt: what the video shows, at most 1000 characters.
            model: name of a model.
            steps: network steps; none takes the model's default.
            guidance: how closely to follow the prompt; none takes the model's default.
            seed: 0 to 4294967295; none draws one and reports it in the recipe.

        Returns:
            Progress while it runs (stage, step, steps, seconds); finally the video, its recipe,
            the link to its settings, seconds by stage, and network calls.
        """
        try:
            request = read_request(
                context.models, model, prompt, steps=steps, guidance=guidance, seed=seed
            )
            clip = yield from context.engine.run(model, request, _describe_update)
        except (RequestError, EngineError) as error:
            raise error_message(error, type(error).__name__) from None
        yield _describe_clip(clip)

    def compare(prompt: str, seed: int | None = None) -> Iterator[dict[str, Any]]:
        """Generate one video with every row of the Compare tab, with the same prompt and seed.

        Parameters:
            prompt: what the videos show, at most 1000 characters.
            seed: 0 to 4294967295; none draws one and reports it in the recipes.

        Returns:
            Progress while it runs (stage, step, steps, seconds); finally the rows, each with
            its title, video, recipe, link, seconds by stage, and network calls.
        """
        rows: list[dict[str, Any]] = []
        try:
            requests = read_comparison(context, prompt, seed)
            for row, request in zip(context.rows, requests, strict=True):
                clip = yield from context.engine.run(row.model, request, _describe_update)
                rows.append({"title": row.title, **_describe_clip(clip)})
        except (RequestError, EngineError) as error:
            raise error_message(error, type(error).__name__) from None
        yield {"stage": "done", "rows": rows}

    gr.api(generate, api_name="generate", **ONE_AT_A_TIME)
    gr.api(compare, api_name="compare", **ONE_AT_A_TIME)


def _describe_update(update: Update) -> dict[str, Any]:
    return {
        "stage": update.stage,
        "step": update.step,
        "steps": update.steps,
        "seconds": round(update.seconds, 3),
    }


def _describe_clip(clip: GeneratedClip) -> dict[str, Any]:
    return {
        "stage": "done",
        "video": FileData(path=str(clip.path), mime_type="video/mp4").model_dump(),
        "recipe": clip.recipe,
        "link": link_to(clip.recipe),  # relative to the page
        "seconds": clip.seconds,
        "unet_calls": clip.unet_calls,
    }
