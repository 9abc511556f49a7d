"""Matrix products in bfloat16, where the processor multiplies these much faster than float32.

What comes out of such a product is off by 2^-9 of itself at most; rounding to 4 bits is off by some percent.
"""

import torch


def product_type(device: torch.device) -> torch.dtype:
    """What products are computed in there: bfloat16 or float32."""
    capabilities = torch.cpu.get_capabilities()
    fast = device.type == "cpu" and (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`left` (n, k) @ `right` (k, m), multiplied in `dtype`: float32 (n, m)."""
    return (left.to(dtype) @ right.to(dtype)).float()
