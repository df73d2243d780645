"""Every option of samplernn: one frozen dataclass per part, validated, plain values only.

The names are the keys of the YAML files in ``configs/`` and of the command line
(``ModelConfig.dim`` is ``model.dim`` and ``--model.dim``); the string under a field is its
help text. Nothing here imports torch, so reading a configuration is instant.
"""

from __future__ import annotations

import itertools
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from samplernn.messages import UserError, brief, let_everything_be_printed, one_line, require
from samplernn.values import checked, from_dict, merged, to_dict

__all__ = [
    "CELLS",
    "DECODE_TIMEOUT",
    "CellName",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "SamplesConfig",
    "TrainerConfig",
    "UserError",
    "brief",
    "checked",
    "from_dict",
    "let_everything_be_printed",
    "merged",
    "one_line",
    "presets",
    "to_dict",
]

DECODE_TIMEOUT = 20.0
"""Default of `data.decode_timeout` in seconds."""


CellName = Literal[
    "gru",
    "lstm",
    "rnn-tanh",
    "rnn-relu",
    "lstm-peephole",
    "gru-reset-before",
    "leaky",
    "echo-state",
    "mingru",
]
"""Recurrent cells: docs/cells.md has their equations. Each is a file of samplernn/model/cells/."""
CELLS: tuple[CellName, ...] = typing.get_args(CellName)

HeadName = Literal["softmax"]
"""What the network's outputs mean: see samplernn/model/heads.py."""

# Far above what can be trained; below these a network's size is computed in an instant (see `model.entry`).
_MAX_FRAME_SIZE = 2**20
_MAX_DIM = 2**16
_MAX_LAYERS = 100
_MAX_SAMPLES_PER_STEP = 2**31


def _require_range(
    part: str,
    options: Any,
    names: str,
    low: float,
    high: float = math.inf,
    *,
    without_low: bool = False,
    without_high: bool = False,
    unit: str = "",
) -> None:
    """Raises UserError unless each of the named options (names with spaces between) is finite and in a range.

    `without_low` and `without_high` leave out the bound itself.
    """
    for name in names.split():
        value = getattr(options, name)
        at_bound = (without_low and value == low) or (without_high and value == high)
        if math.isfinite(value) and low <= value <= high and not at_bound:
            continue
        if high < math.inf:
            above, below = "above " if without_low else "", "below " if without_high else ""
            wanted = f"be from {above}{low:g} to {below}{high:g}{unit}"
        elif without_low:
            wanted = f"be above {low:g}{unit}"
        else:
            wanted = f"be at least {low:g}{unit}" if low else "not be negative"
        raise UserError(f"{part}.{name} must {wanted}, got {value}")


@dataclass(frozen=True)
class ModelConfig:
    """The network. Two models with equal ``ModelConfig`` have interchangeable weights."""

    frame_sizes: tuple[int, ...] = (64, 16)
    """Samples per frame of every frame-level tier, slowest tier first, each divisible by the next."""
    rnn: CellName = "gru"
    """Recurrent cell of the frame-level tiers: docs/cells.md has their equations."""
    n_rnn: int = 1
    """Stacked RNN layers per frame-level tier."""
    dim: int = 256
    """Hidden units of every RNN layer and of the sample-level MLP."""
    learn_h0: bool = True
    """Learn the RNN state with which a segment starts (otherwise it is zero)."""
    weight_norm: bool = True
    """Weight normalisation (Salimans & Kingma, 2016) of every linear layer, but not of the RNN."""
    embedding_dim: int = 256
    """Size of the embedding of one sample code (0: none; the MLP's first layer then reads codes one-hot)."""
    q_levels: int = 256
    """Number of codes that a sample is quantized to."""
    quantization: Literal["linear", "mu-law", "a-law"] = "linear"
    """How amplitude becomes a code."""
    head: HeadName = "softmax"
    """Output distribution over the next code."""
    forget_bias: float = 1.0
    """Initial forget-gate bias of lstm and lstm-peephole (the original's: 3)."""
    skip_connections: bool = False
    """With n_rnn above 1: the first layer's input also goes to every other layer, and the output is made of
    all layers (Graves, 2013)."""
    recurrent_input: bool = True
    """Of lstm-peephole: gates see the last hidden vector, too (false: U = 0, the cell state alone)."""
    time_constants: Literal["learned", "fixed"] = "learned"
    """Of leaky, log-spaced from 1 to 1000 steps of the tier at first: learned, or left there."""
    leak: float = 1.0
    """Of echo-state: share of a unit that each step renews, above 0 to 1 (1: all of it)."""
    spectral_radius: float = 0.9
    """Of echo-state: largest absolute eigenvalue of the fixed recurrent weights."""
    density: float = 0.1
    """Of echo-state: share of the recurrent weights that are not zero, above 0 to 1."""
    rnn_weight_norm: bool = False
    """Weight normalisation of the RNN's matrices too, per unit of each gate, as in the original."""
    top_projection: bool = True
    """Project the frames of the slowest tier to `dim`, as those of the others (the original feeds them
    straight into its RNN: false)."""
    linear_mlp_layer: bool = False
    """One more layer in the sample-level MLP, as in the original: the sum of first layer and conditioning
    goes into it without a ReLU. It is folded away for generation."""

    def __post_init__(self) -> None:
        sizes = self.frame_sizes
        shown = brief(list(sizes))
        require(len(sizes) > 0, "model.frame_sizes is empty: give at least one, such as [16]")
        require(all(size >= 1 for size in sizes), f"model.frame_sizes {shown}: sizes must be at least 1")
        descending = sorted(sizes, reverse=True)
        require(
            list(sizes) == descending,
            f"model.frame_sizes {shown} is not slowest tier first: write {brief(descending)}",
        )
        for slow, fast in itertools.pairwise(sizes):
            require(
                slow % fast == 0 and slow > fast,
                f"model.frame_sizes {shown}: {slow} must be a multiple of {fast}, and larger. "
                "Sizes are samples per frame, not ratios (ratios 4 over 16 are written [64, 16])",
            )
        require(
            sizes[0] <= _MAX_FRAME_SIZE,
            f"model.frame_sizes {shown}: frames of more than {_MAX_FRAME_SIZE} samples are not possible",
        )
        require(
            self.embedding_dim >= 0,
            f"model.embedding_dim must be at least 1, or 0 for one-hot codes, got {self.embedding_dim}",
        )
        _require_range("model", self, "dim", 1, _MAX_DIM)
        _require_range("model", self, "embedding_dim", 0, _MAX_DIM)
        _require_range("model", self, "n_rnn", 1, _MAX_LAYERS)
        _require_range("model", self, "leak density", 0, 1, without_low=True)
        _require_range("model", self, "spectral_radius", 0, without_low=True)
        _require_range("model", self, "q_levels", 2, 1024)
        require(math.isfinite(self.forget_bias), f"model.forget_bias must be finite, got {self.forget_bias}")

    @property
    def lookback(self) -> int:
        """Samples of history that one step needs: the largest frame."""
        return self.frame_sizes[0]

    @property
    def n_tiers(self) -> int:
        """Tiers in Mehri's count: the sample-level MLP is tier 1."""
        return len(self.frame_sizes) + 1


@dataclass(frozen=True)
class DataConfig:
    """The corpus and how training walks it."""

    sample_rate: int = 16000
    """Sample rate in Hz to which everything is resampled."""
    batch_size: int | Literal["auto"] = 16
    """Lanes over all devices together; auto: as many as fit into memory and the audio keeps busy, at most
    256. A run keeps the number that it began with."""
    tbptt_len: int = 512
    """Samples per chunk of truncated backpropagation, a multiple of the largest frame."""
    segment_duration: float = 8.0
    """Seconds of contiguous audio that a lane reads before its state is reset."""
    validation_duration: float = 120.0
    """Training validates, and at its end tests, on at most this many seconds, taken from all over the
    held-out files (`evaluate` scores everything)."""
    split_seed: int = 0
    """Decides which files are held out for validation and test."""
    cache_dir: str | None = None
    """Folder for decoded audio. Default: the user's cache folder; never the audio folder."""
    decode_timeout: float = DECODE_TIMEOUT
    """Seconds that a file of up to 4 MiB may take to decode, larger ones in proportion. A file that takes
    longer, because the decoder hangs, is left out and named."""
    normalise: Literal["corpus", "clip"] = "corpus"
    """One gain for the whole corpus, or one per file, so that each reaches the peak of the loudest. `clip` is
    for comparison with work that does so: such bits do not compare with those at one gain, and what is
    generated comes out at the level of the loudest."""
    keep_takes_together: bool = True
    """Files that share audio (overlapping cuts, the same take as WAV and MP3) train together or are held out
    together, so that nothing held out has been heard in training."""

    def __post_init__(self) -> None:
        _require_range("data", self, "sample_rate", 1000, 384_000, unit=" Hz")
        require(
            self.batch_size == "auto" or self.batch_size >= 1,
            f"data.batch_size must be at least 1, or auto, got {self.batch_size}",
        )
        _require_range("data", self, "tbptt_len", 1)
        lanes = 1 if self.batch_size == "auto" else self.batch_size
        require(
            lanes * self.tbptt_len <= _MAX_SAMPLES_PER_STEP,
            f"data.batch_size x data.tbptt_len are {lanes * self.tbptt_len} samples at once: at most "
            f"{_MAX_SAMPLES_PER_STEP} are possible",
        )
        durations = "segment_duration validation_duration decode_timeout"
        _require_range("data", self, durations, 0, without_low=True, unit=" s")

    @property
    def lanes(self) -> int:
        """`batch_size` as a number.

        Raises:
            UserError: it is still `auto`, of which `training.auto_lanes` makes a number when a run begins.
        """
        if self.batch_size == "auto":
            raise UserError("data.batch_size is auto, and this needs a number: give one")
        return self.batch_size


@dataclass(frozen=True)
class OptimConfig:
    """Adam, its learning-rate schedule, and when to give up."""

    lr: float = 4e-3
    """Peak learning rate of Adam."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After warm-up: a cosine towards `final_lr` at the run's planned end (by steps, epochs or
    time, whichever ends first), or constant. A run without a planned end stays constant."""
    final_lr: float = 0.05
    """Where the cosine ends, as a fraction of `lr`."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    patience: int = 10
    """Stop after this many validations without a better result (0: never)."""
    ema_decay: float = 0.0
    """Validate, sample and keep for use an exponential moving average of the weights with this decay per
    step, such as 0.999; it is smaller in the first steps (0: the weights themselves)."""

    def __post_init__(self) -> None:
        _require_range("optim", self, "lr", 0, without_low=True)
        _require_range("optim", self, "final_lr", 0, 1)
        _require_range("optim", self, "warmup_steps weight_decay patience", 0)
        _require_range("optim", self, "ema_decay", 0, 1, without_high=True)
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas must be two numbers from 0 to below 1, got {list(self.betas)}",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When `checkpoints/last.ckpt` is renewed; `best.ckpt` follows every better validation."""

    every_steps: int = 0
    """Save after this many steps (0: by time alone)."""
    every_minutes: float = 5.0
    """Save after this many minutes (0: by steps alone)."""

    def __post_init__(self) -> None:
        _require_range("checkpoint", self, "every_steps every_minutes", 0)


@dataclass(frozen=True)
class SamplesConfig:
    """Audio that training generates at each validation, in at most a tenth of the time."""

    num: int = 2
    """Streams per temperature (0: no audio at all, no continuations either)."""
    duration: float = 3.0
    """Seconds per stream; shortened where the time share would be exceeded."""
    temperatures: tuple[float, ...] = (0.9, 1.0)
    """Sampling temperatures; continuations take the first."""
    prompts: int = 1
    """Held-out recordings that are continued, the same at every validation (0: none)."""
    prompt_duration: float = 1.0
    """Seconds of each that the model hears first."""
    seed: int = 0
    """Seed of the streams: the same at every validation, so that only the model changes."""

    def __post_init__(self) -> None:
        _require_range("samples", self, "num prompts", 0)
        _require_range("samples", self, "duration prompt_duration", 0, without_low=True, unit=" s")
        require(0 <= self.seed < 2**64, f"samples.seed must be from 0 to 2**64 - 1, got {self.seed}")
        shown = list(self.temperatures)
        require(len(shown) > 0, "samples.temperatures is empty: give at least one, such as [0.95]")
        require(
            all(0 <= temperature < math.inf for temperature in shown),
            f"samples.temperatures must not be negative, got {shown}",
        )
        require(
            len({f"{temperature:.2f}" for temperature in shown}) == len(shown),
            f"samples.temperatures {shown}: two are the same to two decimals",
        )


@dataclass(frozen=True)
class TrainerConfig:
    """Options of `lightning.Trainer`, under Lightning's own names."""

    accelerator: str = "auto"
    """`auto`, `cpu`, `gpu`, …"""
    devices: int | str = "auto"
    """Processes, one per device: a number, or `auto`: all GPUs, or one process on the CPU."""
    num_nodes: int = 1
    """Machines; torchrun and srun say it themselves."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several processes train together: always DistributedDataParallel."""
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"] = "auto"
    """Arithmetic of the network; auto: bf16-mixed where the device multiplies bfloat16 fast, else 32-true."""
    max_steps: int = -1
    """End after this many steps (-1: no limit)."""
    max_epochs: int = -1
    """End after this many epochs (-1: no limit)."""
    max_time: str | None = None
    """End after this time, as DD:HH:MM:SS (in a YAML file: in quotes); `--max-minutes` is shorter. All
    sessions of a resumed run count."""
    gradient_clip_val: float | None = 1.0
    """Clip gradients at this norm or value (null: do not)."""
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    """Clip the norm of the gradients together, or each value."""
    gradient_clip_parameters: Literal["all", "recurrent"] = "all"
    """Whose gradients are clipped: of all parameters, or of the hidden-to-hidden matrices alone (norm: of all
    tiers and layers together)."""
    accumulate_grad_batches: int = 1
    """Chunks per optimizer step."""
    val_check_interval: int = 1000
    """Steps between validations."""
    log_every_n_steps: int = 20
    """Steps between logged training metrics."""
    enable_progress_bar: bool = True
    """Show progress."""
    process_timeout_minutes: float = 30.0
    """Give up when a process has not answered the others for so long: it is frozen, or its machine gone."""

    def __post_init__(self) -> None:
        require(
            self.max_steps == -1 or self.max_steps >= 1,
            f"trainer.max_steps must be -1 or at least 1, got {self.max_steps}",
        )
        require(
            self.max_epochs == -1 or self.max_epochs >= 1,
            f"trainer.max_epochs must be -1 or at least 1, got {self.max_epochs}",
        )
        counts = "val_check_interval log_every_n_steps accumulate_grad_batches num_nodes"
        _require_range("trainer", self, counts, 1)
        _require_range("trainer", self, "process_timeout_minutes", 0, without_low=True)
        require(
            self.gradient_clip_val is None or self.gradient_clip_val > 0,
            f"trainer.gradient_clip_val must be above 0 or null, got {self.gradient_clip_val}",
        )
        self.max_seconds  # noqa: B018  (raises on a malformed time)

    @property
    def max_seconds(self) -> float:
        """`max_time` in seconds, infinite when unset."""
        if self.max_time is None:
            return math.inf
        parts = self.max_time.split(":")
        require(
            len(parts) == 4 and all(part.isdecimal() and part.isascii() for part in parts),
            f"trainer.max_time must look like DD:HH:MM:SS (ten minutes: 00:00:10:00), got {self.max_time!r}",
        )
        days, hours, minutes, seconds = (int(part) for part in parts)
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        require(total > 0, f"trainer.max_time must be above zero, got {self.max_time!r}")
        return float(total)


@dataclass(frozen=True)
class Config:
    """A whole training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    data: DataConfig = field(default_factory=DataConfig)
    """The corpus."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    """Audio generated during training."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Options of `lightning.Trainer`."""
    seed_everything: int = 0
    """Seed of initialisation and of the order of the data."""
    logger: Literal["tensorboard", "wandb", "both"] = "tensorboard"
    """Dashboard: TensorBoard, Weights & Biases (offline without a key), or both. metrics.csv is always
    written too."""

    def __post_init__(self) -> None:
        lookback = self.model.lookback
        require(
            0 <= self.seed_everything < 2**32,
            f"seed_everything must be from 0 to 2**32 - 1, got {self.seed_everything}",
        )
        require(
            not self.optim.ema_decay or self.trainer.precision != "bf16-true",
            f"optim.ema_decay {self.optim.ema_decay}: bf16-true weights are too coarse to be averaged; "
            "take trainer.precision bf16-mixed",
        )
        nearest = max(1, round(self.data.tbptt_len / lookback)) * lookback
        require(
            self.data.tbptt_len % lookback == 0,
            f"data.tbptt_len {self.data.tbptt_len} is not a multiple of the largest frame "
            f"(model.frame_sizes[0] = {lookback}): take {nearest}",
        )


NO_PRESETS = ("sweep", "ablations")
"""Files in ``configs/`` that are for another program."""


def presets() -> dict[str, Path]:
    """The shipped configurations by name, such as ``small``."""
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            files = sorted(folder.glob("*.yaml"))
            return {path.stem: path for path in files if path.stem not in NO_PRESETS}
    raise UserError(f"no configs folder beside {package}: reinstall samplernn")
