"""What a frozen app needs of llama-cpp-python: libllama, and of its optional imports none.

The wheel holds each library under three names. ctypes opens libllama by the first, in llama_cpp/lib; what that is
linked to goes by the second, and PyInstaller follows the links and keeps the folder. So each library comes along once,
and there is one registry of devices (see weblab_local/ggml.py).
"""

from pathlib import Path

from PyInstaller.utils.hooks import copy_metadata, get_module_file_attribute

_folder = Path(get_module_file_attribute("llama_cpp")).parent / "lib"
_names = ("libllama.so", "libllama.dylib", "llama.dll", "libllama.dll")
"""In the order in which llama_cpp looks for them."""

binaries = [(str(next(_folder / name for name in _names if (_folder / name).is_file())), "llama_cpp/lib")]
datas = copy_metadata("llama-cpp-python")  # saved conversations name its version
excludedimports = ["huggingface_hub", "llama_cpp.mtmd_cpp", "openai", "requests", "transformers"]
