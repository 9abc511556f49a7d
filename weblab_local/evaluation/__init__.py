"""The model card's benchmark: JGLUE and what the Stability-AI fork of lm-eval put beside it, template version 0.3.

    data --prompts--> questions with examples --harness, lm_eval--> model (llama.cpp, or the fp16 reference) --> answers
    --metrics--> scores --report, comparison--> tables

Needs the extra `eval`. Nothing outside of this package imports it before `weblab-local eval` is called.
"""
