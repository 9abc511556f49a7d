"""OpenAI's error objects, for everything that can go wrong.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from weblab_local.errors import PromptError, PromptTooLong, SamplingError, WeblabError
from weblab_local.i18n import _

OLLAMA = "/api/"
"""How the addresses of Ollama's API begin."""

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
"""HTTP status to OpenAI's type; every other is an `invalid_request_error`."""


class ErrorDetail(BaseModel):
    """What went wrong. `param` names the field of the request, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every response that is not 2xx."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A request cannot be answered; becomes a response with `status`.

    An HTTPException, which FastAPI lets through where it takes every other for a broken body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = printable(message)
        super().__init__(status, message, headers)
        self.body = ErrorResponse(
            error=ErrorDetail(message=message, type=TYPES.get(status, "invalid_request_error"), param=param, code=code)
        )

    @property
    def of_ollama(self) -> dict[str, str]:
        """The error as Ollama's API has it."""
        return {"error": self.body.error.message}

    def response(self, path: str) -> JSONResponse:
        """The response that says so, in the form of the API that `path` belongs to."""
        content = self.of_ollama if path.startswith(OLLAMA) else self.body.model_dump()
        return JSONResponse(content, self.status_code, self.headers)


def api_error(error: Exception) -> ApiError:
    """What an exception is to a client. Of one that is not this package's own nothing is told."""
    match error:
        case ApiError():
            return error
        case HTTPException(status_code=404):
            return ApiError(404, _("There is nothing under this address."), code="not_found")
        case HTTPException(status_code=405):
            return ApiError(
                405, _("This address takes another method."), code="method_not_allowed", headers=error.headers
            )
        case HTTPException():
            return ApiError(error.status_code, _("The body cannot be read."), code="invalid_json")
        case PromptTooLong():
            return ApiError(400, str(error), code="context_length_exceeded")
        case PromptError() | SamplingError():
            return ApiError(400, str(error), code="invalid_value")
        case WeblabError():
            return ApiError(500, str(error), code="engine_error")
    return ApiError(500, _("The server failed. Its log says where."), code="internal_error")


def error_event(error: ApiError) -> dict[str, Any]:
    """Return what a stream holds of an error: under `weblab` what the response would have said in its head."""
    said = {name.lower(): value for name, value in (error.headers or {}).items()}
    wait = {"retry_after": int(said["retry-after"])} if "retry-after" in said else {}
    return {**error.body.model_dump(), "weblab": {"status": error.status_code, **wait}}


def validation_error(errors: Sequence[Any]) -> ApiError:
    """What pydantic found wrong with a request, its first complaint by name."""
    first, place = errors[0], _place(errors[0])
    param = ".".join(place) or None
    if first["type"] == "json_invalid" or (not place and first["type"] in ("model_attributes_type", "missing")):
        return ApiError(400, _("The body is not a JSON object."), code="invalid_json")
    if first["type"] == "unsupported":
        return unsupported_parameter(param or "")
    if len({_branch(error) for error in errors}) > 1 and all(_place(error)[:1] == place[:1] for error in errors):
        message = _("{param} has none of the forms it may have.").format(param=place[0])
        return ApiError(400, message, code="invalid_value", param=place[0])
    complaint = str(first["msg"]).removeprefix("Value error, ")
    message = f"{param}: {complaint}" if param else complaint
    return ApiError(400, message, code="invalid_value", param=param and printable(param))


def unsupported_parameter(param: str) -> ApiError:
    """The refusal of a field by its name. Libraries force a tool for the sake of an object."""
    if param in ("tool_choice", "function_call"):
        message = _("{param}: no tool can be called here. For an object, ask for a JSON schema.").format(param=param)
    else:
        message = _("{param} is not supported here. Leave it out.").format(param=param)
    return ApiError(400, message, code="unsupported_parameter", param=printable(param))


def _place(error: Any) -> list[str]:
    """Where in the body."""
    return [str(part) for part in error["loc"] if part != "body"]


def _branch(error: Any) -> str:
    """For a field of several forms, the one that pydantic tried: it follows the field's name."""
    return "".join(_place(error)[1:2])


def printable(text: str) -> str:
    """`text` as UTF-8 can hold it: a lone surrogate, which JSON may hold, becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
