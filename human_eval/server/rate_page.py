"""The page on which raters answer: fixed files, sent with headers that let nothing else in.

It is a page of its own, not a part of another framework's: it opens in one round trip, works
without anybody else's scripts, and nothing that it loads could tell what it must not.
"""

from pathlib import Path

from fastapi import Request, Response
from starlette.responses import RedirectResponse

from human_eval.server.http import reply

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


class RatePage:
    """The page and its files."""

    def __init__(self, *, embedded: bool = False) -> None:
        """
        Args:
            embedded: the page lives in another site's frame.
        """
        self._files = {
            path.name: (path.read_bytes(), TYPES[path.suffix])
            for path in PAGES.iterdir()
            if path.suffix in TYPES
        }
        self._headers = {
            "cache-control": "no-cache",
            "content-security-policy": POLICY.format(
                frames=SPACE_FRAMES if embedded else OWN_FRAMES
            ),
            "permissions-policy": "camera=(), microphone=(), geolocation=()",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    async def send(self, request: Request) -> Response:
        """Send the page, or the file of it that the path names."""
        name = request.path_params.get("name", "rate.html")
        if name not in self._files:
            return reply({"error": "Expected a file of the page, got another. Open /rate."}, 404)
        content, kind = self._files[name]
        return Response(content, 200, self._headers, kind)

    async def without_slash(self, request: Request) -> Response:
        """Lead to the page: its addresses are relative, and would be wrong below a slash."""
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"../rate{query}", 307)
