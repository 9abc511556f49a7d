"""lm-eval's own command with this engine among its models.

python -m weblab_local.evaluation run --model weblab-local --model_args model=demo --tasks ... [--use_cache FILE]
"""

from lm_eval.__main__ import cli_evaluate

import weblab_local.evaluation.lm_eval_model  # noqa: F401 (registers the model)

if __name__ == "__main__":
    cli_evaluate()
