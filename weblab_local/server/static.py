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


def add_page(app: FastAPI) -> None:
    """Serve index.html as `/` and the other files as `/page/NAME`."""
    for file in sorted(FOLDER.iterdir()):
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        media_type = TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        serve = partial(_serve, file.read_bytes(), media_type)
        app.add_route(path, serve, methods=["GET", "HEAD"], include_in_schema=False)


async def _serve(content: bytes, media_type: str, _request: Request) -> Response:
    return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})
