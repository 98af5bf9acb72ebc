"""A small page for a browser at an address that has no page of its own: it leads on.

Programs get the same reply as JSON.
"""

from dataclasses import dataclass

from fastapi import Request, Response

from human_eval.server.language import Language

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'self'"
TEMPLATE = """<!doctype html>
<html lang="{{ language.key }}" dir="{{ language.direction }}">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 10vh auto;
padding: 0 1rem; }</style>
<h1>{{ title }}</h1>
{% if message %}<p>{{ message }}</p>{% endif %}
<p><a href="{{ address }}">{{ link }}</a></p>
</html>
"""


@dataclass(frozen=True)
class LeadPage:
    """Where an application leads a browser, in a language."""

    language: Language
    title: str  # title and link are English sentences of the catalogues
    link: str
    address: str  # relative to the application's root

    def render(self, request: Request, message: str = "", status: int = 200) -> Response:
        """Return the page; its link is relative, so that it works below any prefix.

        Args:
            message: why there is no other page, translated.
        """
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        address = "../" * (path.count("/") - 1) + self.address
        if request.url.query and not address.endswith("/"):
            address += f"?{request.url.query}"  # which may hold the rater's link
        page = self.language.render(
            TEMPLATE,
            title=self.language.translate(self.title),
            link=self.language.translate(self.link),
            address=address,
            message=message,
        )
        headers = {
            "cache-control": "no-store",
            "content-security-policy": POLICY,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        return Response(page, status, headers, "text/html; charset=utf-8")


def is_for_browser(request: Request) -> bool:
    """Return whether a person opened the address, rather than a script or a program."""
    return request.method in ("GET", "HEAD") and "text/html" in request.headers.get("accept", "")
