"""What a frozen app needs of weblab_local: modules that are imported by name, data, and nothing of the eval command."""

from PyInstaller.utils.hooks import collect_data_files

from weblab_local import _MODULES

hiddenimports = sorted({f"weblab_local.{module}" for module in _MODULES.values()})
datas = collect_data_files("weblab_local", excludes=["**/*.po"])
excludedimports = ["lm_eval", "torch", "transformers"]
