"""The page on which raters answer: fixed files with a strict content security policy.

It is a page of its own and uses no framework: it loads in one round trip, runs no third-party
scripts, and none of its files contains anything about the systems.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from human_eval.server.http import READ

PAGES = Path(__file__).parent / "pages"
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
OWN_FRAMES = "'self'"
SPACE_FRAMES = "'self' https://huggingface.co https://*.hf.space"


def create_page_router(*, embedded: bool) -> APIRouter:
    """Create the routes of the page and its files.

    Args:
        embedded: the page is shown in another site's frame.
    """
    files = {
        path.name: (path.read_bytes(), TYPES[path.suffix])
        for path in PAGES.iterdir()
        if path.suffix in TYPES
    }
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": POLICY.format(frames=SPACE_FRAMES if embedded else OWN_FRAMES),
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
        content, media_type = files[name]
        return Response(content, 200, headers, media_type)

    return router
