"""Which mean KL divergence passes, by mixture, and what it means in words."""

from collections.abc import Mapping

KL_LIMITS: Mapping[str, float] = {
    "F32": 0.001,
    "F16": 0.001,
    "Q8_0": 0.004,
    "Q6_K": 0.015,
    "Q5_K_M": 0.03,
    "Q4_K_M": 0.08,
    "W4": 0.04,
    "W3": 0.06,
    "Q4_K_S": 0.1,
    "IQ4_XS": 0.1,
    "Q4_0": 0.18,
    "Q3_K_M": 0.26,
}
"""Nats, for the mean over the texts of one language. 40 to 65 times what a small GPT-NeoX trained on Japanese loses:
0.000065 in Q8_0, 0.00034 in Q6_K, 0.00059 in Q5_K_M, 0.00154 in Q4_K_M, 0.00172 in Q4_K_S, 0.00214 in IQ4_XS,
0.00274 in Q4_0, 0.00559 in Q3_K_M. On other texts W4 loses 0.0005 where Q4_K_M loses 0.0013, and W3 0.0012 with all
its layers in 3 bits, as nearly all of the 10B's are. Models that are trained for longer lose more, and the margin
is for them: the limits are also about two and a half times what llama.cpp's documentation of llama-perplexity gives for
Llama 3 8B, which is known as hard to quantize (0.0014, 0.0055, 0.0108, 0.0313, 0.0431, 0.0363, 0.0719, 0.1019).
Whatever is run wrongly is beyond: on the demo a wrong rotary fraction gives more than any of them. F16 and F32 are held
to the runtime's own error, which is about 0.000002 in that model: tanh GELU, keys and values in fp16."""

LIMITS_IN_WORDS = (
    "A file passes when the mean KL divergence of each language is within its mixture's limit: about fifty times what "
    "a small GPT-NeoX trained on Japanese loses, and two and a half times what llama.cpp documents for Llama 3 8B, "
    "which is hard to quantize. A damaged file is far beyond it."
)

_IN_WORDS = (
    (0.0001, "the same for every purpose"),
    (0.002, "not to be told from the reference in use"),
    (0.01, "very close: another word now and then"),
    (0.05, "close: some answers take another turn, and are as good"),
    (0.2, "noticeably worse: expect mistakes that the reference does not make"),
)


def in_words(mean_kl: float) -> str:
    """What a mean KL divergence in nats means for whoever uses the model."""
    return next((words for bound, words in _IN_WORDS if mean_kl < bound), "another model than the reference")


def words_table() -> list[tuple[str, str]]:
    """The bounds and their words, for a report."""
    rows = [(f"below {bound:g}", words) for bound, words in _IN_WORDS]
    return [*rows, ("above", in_words(1e9))]
