"""What a reverse proxy knows about a request: the visitor's address, the scheme, the root path."""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from human_eval.errors import StudyError
from human_eval.hosting.deployment import Deployment, parse_root_path


class BehindProxy:
    """ASGI middleware, in front of all others: it applies the headers of trusted proxies.

    The root path is the deployment's, or the X-Forwarded-Prefix of a trusted proxy. The proxy may
    remove it from the path of a request or leave it there.
    """

    def __init__(self, app: ASGIApp, deployment: Deployment) -> None:
        self._app = ProxyHeadersMiddleware(app, deployment.proxies)  # type: ignore[arg-type]
        self._root_path = deployment.root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (root := self._root_path or self._forwarded_prefix(scope)):
            path = scope["path"]
            if path == root:  # the page's addresses are relative to the slash
                query = scope["query_string"].decode("latin-1")
                address = f"{root.rpartition('/')[2]}/{'?' if query else ''}{query}"
                await RedirectResponse(address, 307)(scope, receive, send)
                return
            path = path if path.startswith(f"{root}/") else root + path
            scope = {**scope, "root_path": root, "path": path}
        await self._app(scope, receive, send)  # type: ignore[arg-type]

    def _forwarded_prefix(self, scope: Scope) -> str:
        client = scope.get("client")
        if client is None or client[0] not in self._app.trusted_hosts:
            return ""
        for name, value in scope["headers"]:
            if name == b"x-forwarded-prefix":
                try:
                    return parse_root_path(value.decode("latin-1"))
                except StudyError:
                    return ""
        return ""


def path_below_root(scope: Scope) -> str:
    """Return the path of a request without the root path."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
