"""The OpenAPI description against the server: schemathesis makes up requests and holds every answer against it."""

import subprocess
import sys
from pathlib import Path

from openapi_spec_validator import validate

from tests.server.support import KEY, Running, serving
from weblab_local.engine.engine import Engine

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,ignored_auth"
)
"""All that can hold. Not every request that fits the description can be answered: fields exclude each other, and a
conversation has an order."""


def test_schemathesis_finds_no_failure(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, api_keys=[KEY], timeout=1, metrics=True) as server:
        program = Path(sys.executable).with_name("schemathesis")
        done = subprocess.run(
            [
                program,
                "run",
                f"{server.url}/openapi.json",
                *("--checks", CHECKS),
                *("--header", f"Authorization: Bearer {KEY}"),
                *("--phases", "examples,coverage,fuzzing"),
                *("--max-examples", "40"),
                *("--seed", "1"),
                "--no-color",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        with server.http as http:
            n = sum(len(methods) for methods in http.get("/openapi.json").json()["paths"].values())
        assert f"Operations:       {n} selected / {n} total" in done.stdout
        assert f"Tested: {n}" in done.stdout


def test_the_description_is_valid_and_says_what_streams(server: Running) -> None:
    with server.http as http:
        description = http.get("/openapi.json").json()
    validate(description)
    content = description["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert content.keys() == {"application/json", "text/event-stream"}
