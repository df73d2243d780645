"""The arithmetic of a run, without Lightning, so that a forecast can ask for it, too."""

from __future__ import annotations

from typing import Literal

import torch

from samplernn.config import Config
from samplernn.model.cells.lstm import has_narrow_lstm

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


def left_wide(config: Config, device: torch.device) -> str | None:
    """A line about what is computed in float32 although the run's precision is narrower; None if nothing is.

    Args:
        config: of the run.
        device: that it trains on.
    """
    arithmetic = precision(config)
    if config.model.rnn != "lstm" or device.type != "cpu" or not arithmetic.endswith("-mixed"):
        return None
    if has_narrow_lstm(torch.bfloat16):  # Lightning takes that for 16-mixed, too
        return None
    return (
        f"trainer.precision {arithmetic}: PyTorch has no LSTM in bfloat16 for this processor, so the LSTM is "
        "computed in float32"
    )


def _cpu_multiplies_bfloat16() -> bool:
    """AVX512-BF16 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
