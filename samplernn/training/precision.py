"""The arithmetic of a run, without Lightning, so that a forecast can ask for it, too."""

from __future__ import annotations

from typing import Literal

import torch

from samplernn.config import Config

Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"]


def precision(config: Config) -> Precision:
    """`trainer.precision`; for ``auto`` what suits the device: bfloat16 products where it is made for them.

    Processors have instructions for that since 2020 (Intel) and 2022 (AMD), GPUs since Ampere; others would
    only imitate it.
    """
    wanted = config.trainer.precision
    if wanted != "auto":
        return wanted
    accelerator = config.trainer.accelerator
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bfloat16 = accelerator in ("auto", "cpu") and _cpu_multiplies_bfloat16()
    return "bf16-mixed" if has_bfloat16 else "32-true"


def _cpu_multiplies_bfloat16() -> bool:
    """AVX512-BF16 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
