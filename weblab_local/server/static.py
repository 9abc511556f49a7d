"""The chat page: its files, read once and served as they are."""

import mimetypes
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""By the file's ending; what the system says of it differs (Windows' registry makes text/plain of .js)."""


_HTML = b'<html lang="en"'


def add_page(app: FastAPI, *, is_app: bool = False) -> None:
    """Serve index.html as `/` and the other files as `/page/NAME`.

    `is_app`: the page chooses the model and is counted; an attribute of its root says so.
    """
    for file in sorted(FOLDER.iterdir()):
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        media_type = TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        content = file.read_bytes()
        if is_app and path == "/":
            content = content.replace(_HTML, _HTML + b" data-app")
        serve = partial(_serve, content, media_type)
        app.add_route(path, serve, methods=["GET", "HEAD"], include_in_schema=False)


async def _serve(content: bytes, media_type: str, _request: Request) -> Response:
    return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})
