"""Render the GGUF's chat template in llama.cpp's own template engine and in jinja2, and compare.

    python -m tests.benchmarks.chat_template [--build build/llama-source]

The engine is not in llama-cpp-python's wheel, so it is compiled from its source package (a minute or two).
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import llama_cpp

from tests.benchmarks.llama_source import llama_cpp_source
from tests.engine.test_prompt import message, render
from weblab_local.engine.prompt import CHAT_TEMPLATE

PROGRAM = r"""
#include <iostream>
#include <iterator>
#include "json.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"

int main() {
    const std::string text((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
    const common_json input = common_json::parse(text);
    const std::string source = input.at("template").get<std::string>();
    jinja::lexer lexer;
    jinja::program program = jinja::parse_from_tokens(lexer.tokenize(source));
    jinja::context context(source);
    jinja::global_from_json(context, input.at("variables"), true);
    jinja::runtime runtime(context);
    for (const auto & part : runtime.gather_string_parts(runtime.execute(program))->as_string().parts) {
        std::cout << part.val;
    }
}
"""

CONVERSATIONS: list[tuple[list[dict[str, Any]], bool]] = [
    ([message("user", "大規模言語モデルについて説明してください。")], True),
    ([message("user", "Say hello.")], True),
    ([message("user", "  spaces and\nnewlines \n"), message("assistant", "\n答え "), message("user", "")], True),
    ([message("system", "短く。"), message("user", "一"), message("assistant", "1"), message("user", "二")], True),
    ([message("user", "{{ 1 + 1 }} <|endoftext|> 'quoted' \\n"), message("assistant", "ok")], False),
    ([message("user", "絵文字👩🏽‍🚀と\u3000全角")], True),
    ([message("system", "短く。"), message("assistant", "やあ"), message("user", "一")], True),
    (
        [message("system", ""), message("developer", "短く。"), message("system", "丁寧に。"), message("user", "一")],
        True,
    ),
    (
        [message("user", "一"), message("system", "短く。"), message("assistant", "1"), message("system", "長く。")],
        True,
    ),
    (
        [message("user", [{"type": "text", "text": "一"}, {"type": "text", "text": "二"}]), message("assistant", None)],
        True,
    ),
]


def build(folder: Path) -> Path:
    """Compile the engine with a main that reads template and variables from stdin; the program."""
    folder.mkdir(parents=True, exist_ok=True)
    root = llama_cpp_source(folder)
    program, source = folder / "render", folder / "render.cpp"
    source.write_text(PROGRAM)
    common = root / "common"
    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*.0"))
    subprocess.run(
        [
            *("g++", "-std=c++17", "-O1", "-o", str(program)),
            *(f"-I{path}" for path in (common, root / "vendor", root / "ggml" / "include")),
            *map(str, [source, *sorted((common / "jinja").glob("*.cpp")), common / "json.cpp", common / "unicode.cpp"]),
            *(str(library), f"-Wl,-rpath,{library.parent}"),
        ],
        check=True,
    )
    return program


def main() -> None:
    """Render every conversation in both engines; exit 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--build", type=Path, default=Path("build/llama-source"), help="default: %(default)s")
    program = build(parser.parse_args().build)
    different = 0
    for messages, add_generation_prompt in CONVERSATIONS:
        variables: dict[str, Any] = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        request = json.dumps({"template": CHAT_TEMPLATE, "variables": variables})
        theirs = subprocess.run([program], input=request.encode(), capture_output=True, check=True).stdout.decode()
        same = theirs == render(messages, add_generation_prompt)
        different += not same
        print("same     " if same else "DIFFERENT", json.dumps(messages, ensure_ascii=False))
    print(f"{len(CONVERSATIONS) - different} of {len(CONVERSATIONS)} conversations render alike")
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
