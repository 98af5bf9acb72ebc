"""Links that carry the settings of a video, and their way back into a checked request."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from demo.models import ModelInfo, Request, RequestError, read_request

_FIELDS = ("model", "prompt", "seed", "steps", "guidance")
MAX_LINK = 8 * 1024  # characters; the longest prompt takes 5,400


def link_to(recipe: Mapping[str, Any]) -> str:
    """Return the link, relative to the page, that fills in the settings of a recipe."""
    values = [recipe[name] for name in _FIELDS]
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return f"?recipe={base64.urlsafe_b64encode(text.encode()).decode().rstrip('=')}"


def read_link(value: object, models: Mapping[str, ModelInfo]) -> tuple[str, Request]:
    """Return the model and the request of a link's parameter.

    Raises:
        RequestError: it is damaged, or this page does not accept its settings; for visitors.
    """
    damaged = RequestError("This link is damaged. Copy it again, as a whole.")
    if not isinstance(value, str) or len(value) > MAX_LINK:
        raise damaged
    try:
        text = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(values, list) or len(values) != len(_FIELDS):
        raise damaged
    return read_recipe(dict(zip(_FIELDS, values, strict=True)), models)


def read_recipe(recipe: Mapping[str, Any], models: Mapping[str, ModelInfo]) -> tuple[str, Request]:
    """Return the model and the request of a recipe that came from elsewhere.

    Raises:
        RequestError: a setting is missing, or this page does not accept it; for visitors.
    """
    if any(recipe.get(name) is None for name in _FIELDS):
        raise RequestError("This recipe is not complete. It needs " + ", ".join(_FIELDS) + ".")
    settings = {name: recipe[name] for name in ("steps", "guidance", "seed")}
    request = read_request(models, recipe["model"], recipe["prompt"], **settings)
    return recipe["model"], request
