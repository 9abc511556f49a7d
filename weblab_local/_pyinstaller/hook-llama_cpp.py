"""What a frozen app needs of llama-cpp-python: libllama, its backends, and of its optional imports none.

The wheel holds each library under three names. ctypes opens libllama by the first, in llama_cpp/lib; what that is
linked to goes by the second, and PyInstaller follows the links and keeps the folder. So each library comes along once,
and there is one registry of devices (see weblab_local/llama/ggml.py). Of a portable build nothing is linked to the
backends: ggml looks for them in the folder, by their first names.
"""

import re
from pathlib import Path

from PyInstaller.config import CONF
from PyInstaller.utils.hooks import copy_metadata, get_module_file_attribute, logger

from weblab_local.llama import processor

_folder = Path(get_module_file_attribute("llama_cpp")).parent / "lib"
_names = ("libllama.so", "libllama.dylib", "llama.dll", "libllama.dll")
"""In the order in which llama_cpp looks for them."""

_libraries = [next(_folder / name for name in _names if (_folder / name).is_file())]
datas = copy_metadata("llama-cpp-python")  # saved conversations name its version
excludedimports = ["huggingface_hub", "llama_cpp.mtmd_cpp", "openai", "requests", "transformers"]

if processor.is_portable(_folder):
    backend = re.compile(r"(lib)?ggml-(?!base\.)[^.]+\.(so|dylib|dll)")
    _libraries += [path for path in _folder.iterdir() if backend.fullmatch(path.name)]
else:
    _note = _folder / processor.NOTE
    if not _note.is_file():
        _note = Path(CONF["workpath"]) / processor.NOTE
        _note.write_text(processor.note_text(), encoding="utf-8")
    datas.append((str(_note), "llama_cpp/lib"))
    logger.warning(
        "This llama.cpp was compiled for this machine's processor. On one that lacks any of these the app says so and "
        "ends: %s. For an app that runs on all of them: make app, or python -m convert.install --portable --target "
        "FOLDER and PYTHONPATH=FOLDER while freezing.",
        " ".join(sorted(processor.features())),
    )
binaries = [(str(path), "llama_cpp/lib") for path in _libraries]
