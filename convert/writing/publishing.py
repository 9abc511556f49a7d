"""Finished files get their names, all that can; what is in the way of one is said with what became of the others."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import OutputError, VerificationError
from convert.quantization.mixtures import Mixture
from convert.writing import output
from convert.writing.output import OutputFile
from convert.writing.plan import Plan

Recipe = Callable[[Mixture], Mapping[str, Any]]
"""What decides an output's bytes besides the source, for the manifest."""


@dataclass(frozen=True)
class Result:
    """A finished output."""

    path: Path
    size: int
    sha256: str


def publish(
    plan: Plan,
    files: Sequence[OutputFile],
    results: Sequence[Result],
    figures: Sequence[Mapping[str, Any] | None],
    source: Mapping[str, Any],
    recipe: Recipe,
) -> None:
    """Only when all files and manifests are on the disk give the final names, to what did not fail its verification.

    Raises VerificationError where one did, else OutputError where one cannot have its name; the others have theirs.
    """
    for planned, result, found in zip(plan.outputs, results, figures, strict=True):
        output.stage_manifest(result.path, _manifest(source, recipe(planned.mixture), result, found))
    failed, refused, finished = [], [], []
    for file, found in zip(files, figures, strict=True):
        if found is not None and not found["passed"]:
            file.keep_unverified()
            failed.append(f"{output.unverified_path(file.path)}: {' '.join(found['findings'])}")
        elif (problem := _publish_file(file)) is not None:
            refused.append(problem)
        else:
            finished.append(str(file.path))
    if refused and finished:
        refused.append(f"Finished: {', '.join(finished)}.")
    if failed:
        raise VerificationError(
            "\n".join(["Not what the checkpoint is:", *failed, *refused]),
            "Convert again (make convert FORCE=1). If it stays, please report it; VERIFY=0 gives the file its name.",
        )
    if refused:
        raise OutputError(
            "\n".join(refused),
            "Close the programs that have the file open, and check the disk; then run the same command again with "
            "--force (make convert FORCE=1).",
        )


def _publish_file(file: OutputFile) -> str | None:
    """Give the file its final name, or a free one where the older file is in use.

    Returns what kept the file from its name, None where nothing did.
    """
    try:
        file.publish()
    except OSError as error:
        if not file.partial.exists():
            return f"{file.path} is whole, but has no manifest: {error}."
        if isinstance(error, PermissionError):
            with suppress(OSError):
                kept = file.publish_beside()
                return f"{file.path} cannot be replaced: {error}.\nThe new file is whole and kept as {kept}."
        return f"{file.path} cannot be written: {error}."
    return None


def _manifest(
    source: Mapping[str, Any], recipe: Mapping[str, Any], result: Result, verification: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "format": output.MANIFEST_FORMAT,
        "source": source,
        "recipe": recipe,
        "output": {"name": result.path.name, "size": result.size, "sha256": result.sha256},
        "tools": output.tool_versions(),
        "verification": verification,
    }
