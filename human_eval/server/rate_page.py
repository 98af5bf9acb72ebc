"""The page on which raters answer: files fixed at the start, with a strict content security policy.

It is a page of its own and uses no framework: it loads in one round trip, runs no third-party
scripts, and none of its files contains anything about the systems.
"""

from collections.abc import Sequence
from pathlib import PurePath

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from human_eval.server.http import READ
from human_eval.server.language import PAGES, Language

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self' blob:; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors {frames}"
)


def create_page_router(language: Language, *, frames: Sequence[str] = ()) -> APIRouter:
    """Create the routes of the page and its files.

    Args:
        frames: other sites that may show the page in a frame.
    """
    files = {path.name: path.read_text("utf-8") for path in PAGES.iterdir() if path.suffix in TYPES}
    files["rate.html"] = language.render(files["rate.html"])
    files["catalogue.js"] = language.script()
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": POLICY.format(frames=" ".join(["'self'", *frames])),
        "permissions-policy": "camera=(), microphone=(), geolocation=()",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    router = APIRouter()

    @router.api_route("/rate/", methods=READ)
    async def remove_slash(request: Request) -> Response:
        # The page's addresses are relative: below "/rate/" they would be wrong.
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"../rate{query}", 307)

    @router.api_route("/rate", methods=READ)
    @router.api_route("/rate/{name}", methods=READ)
    async def send(name: str = "rate.html") -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], 200, headers, TYPES[PurePath(name).suffix])

    return router
