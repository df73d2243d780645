"""Every option of samplernn: one frozen dataclass per part, validated, plain values only.

The names are the keys of the YAML files in ``configs/`` and of the command line
(``ModelConfig.dim`` is ``model.dim`` and ``--model.dim``); the string under a field is its
help text. Nothing here imports torch, so reading a configuration is instant.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DECODE_TIMEOUT = 20.0
"""Default of `data.decode_timeout` in seconds."""


class UserError(ValueError):
    """A mistake of the user's that one line can explain: what, where, what to do.

    The command line prints it without a traceback and exits with code 2. Whatever a file's name holds,
    the message is one line (see `one_line`).
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    r"""Text that may hold a file's name, with what cannot be printed as an escape: always one line.

    A name can hold newlines, codes that command a terminal, marks that reverse the text, and (on Linux)
    bytes that are not Unicode. Joiners stay, as they hold emoji together.

    Example:
        >>> one_line("caf\udce9\n.wav")
        'caf\\xe9\\n.wav'
    """
    return "".join(char if char.isprintable() or char in "\u200c\u200d" else _escaped(char) for char in text)


def let_everything_be_printed() -> None:
    """Output never fails over a character: what the encoding of a terminal or pipe lacks becomes an escape.

    Otherwise a file's name, or an ellipsis, would end a command after its work is done. For command lines:
    it changes `sys.stdout` and `sys.stderr`.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        gives_bytes_back = stream.errors == "surrogateescape" and stream.encoding.lower() in ("utf-8", "utf8")
        if not gives_bytes_back:  # that one prints names that are no Unicode as they are
            stream.reconfigure(errors="backslashreplace")


def _escaped(char: str) -> str:
    """One character as Python would write it; a byte that is not Unicode as that byte."""
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def brief(value: Any) -> str:
    """A value that anybody may have written, for a message: as Python writes it, cut short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number with thousands of digits; lists in lists in lists
        return f"a {type(value).__name__} of no use"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


_MOST_SHOWN = 80


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


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


_MOST_FRAME = 2**20
_MOST_AT_ONCE = 2**31
_MOST_UNITS = {"n_rnn": 100, "dim": 2**16}
"""Far above what can be trained; below it a network's size is computed in an instant (see `model.entry`)."""


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
    head: Literal["softmax"] = "softmax"
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
        _require(len(sizes) > 0, "model.frame_sizes is empty: give at least one, such as [16]")
        _require(all(size >= 1 for size in sizes), f"model.frame_sizes {shown}: sizes must be at least 1")
        descending = sorted(sizes, reverse=True)
        _require(
            list(sizes) == descending,
            f"model.frame_sizes {shown} is not slowest tier first: write {brief(descending)}",
        )
        for slow, fast in itertools.pairwise(sizes):
            _require(
                slow % fast == 0 and slow > fast,
                f"model.frame_sizes {shown}: {slow} must be a multiple of {fast}, and larger. "
                "Sizes are samples per frame, not ratios (ratios 4 over 16 are written [64, 16])",
            )
        _require(
            sizes[0] <= _MOST_FRAME,
            f"model.frame_sizes {shown}: frames of more than {_MOST_FRAME} samples are not possible",
        )
        for name, most in _MOST_UNITS.items():
            value = getattr(self, name)
            _require(value >= 1, f"model.{name} must be at least 1, got {value}")
            _require(value <= most, f"model.{name} must be at most {most}, got {value}")
        _require(
            self.embedding_dim >= 0,
            f"model.embedding_dim must be at least 1, or 0 for one-hot codes, got {self.embedding_dim}",
        )
        _require(
            self.embedding_dim <= _MOST_UNITS["dim"],
            f"model.embedding_dim must be at most {_MOST_UNITS['dim']}, got {self.embedding_dim}",
        )
        _require(math.isfinite(self.forget_bias), f"model.forget_bias must be finite, got {self.forget_bias}")
        for name in ("leak", "density"):
            _require(
                0 < getattr(self, name) <= 1,
                f"model.{name} must be above 0 and at most 1, got {getattr(self, name)}",
            )
        _require(
            0 < self.spectral_radius < math.inf,
            f"model.spectral_radius must be above 0, got {self.spectral_radius}",
        )
        _require(2 <= self.q_levels <= 1024, f"model.q_levels must be from 2 to 1024, got {self.q_levels}")

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
        _require(
            1000 <= self.sample_rate <= 384000,
            f"data.sample_rate must be from 1000 to 384000 Hz, got {self.sample_rate}",
        )
        _require(
            self.batch_size == "auto" or self.batch_size >= 1,
            f"data.batch_size must be at least 1, or auto, got {self.batch_size}",
        )
        _require(self.tbptt_len >= 1, f"data.tbptt_len must be at least 1, got {self.tbptt_len}")
        lanes = 1 if self.batch_size == "auto" else self.batch_size
        _require(
            lanes * self.tbptt_len <= _MOST_AT_ONCE,
            f"data.batch_size x data.tbptt_len are {lanes * self.tbptt_len} samples at once: at most "
            f"{_MOST_AT_ONCE} are possible",
        )
        _require(
            self.segment_duration > 0,
            f"data.segment_duration must be above 0 s, got {self.segment_duration}",
        )
        _require(
            self.validation_duration > 0,
            f"data.validation_duration must be above 0 s, got {self.validation_duration}",
        )
        _require(
            0 < self.decode_timeout < math.inf,
            f"data.decode_timeout must be above 0 s, got {self.decode_timeout}",
        )

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
        _require(0 < self.lr < math.inf, f"optim.lr must be above 0, got {self.lr}")
        _require(0 <= self.final_lr <= 1, f"optim.final_lr is a fraction from 0 to 1, got {self.final_lr}")
        _require(self.warmup_steps >= 0, f"optim.warmup_steps must not be negative, got {self.warmup_steps}")
        _require(self.weight_decay >= 0, f"optim.weight_decay must not be negative, got {self.weight_decay}")
        _require(0 <= self.ema_decay < 1, f"optim.ema_decay must be from 0 to below 1, got {self.ema_decay}")
        _require(self.patience >= 0, f"optim.patience must not be negative, got {self.patience}")
        _require(
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
        _require(
            self.every_steps >= 0, f"checkpoint.every_steps must not be negative, got {self.every_steps}"
        )
        _require(
            self.every_minutes >= 0,
            f"checkpoint.every_minutes must not be negative, got {self.every_minutes}",
        )


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
        _require(self.num >= 0, f"samples.num must not be negative, got {self.num}")
        _require(0 < self.duration < math.inf, f"samples.duration must be above 0 s, got {self.duration}")
        shown = list(self.temperatures)
        _require(len(shown) > 0, "samples.temperatures is empty: give at least one, such as [0.95]")
        _require(
            all(0 <= temperature < math.inf for temperature in shown),
            f"samples.temperatures must not be negative, got {shown}",
        )
        _require(
            len({f"{temperature:.2f}" for temperature in shown}) == len(shown),
            f"samples.temperatures {shown}: two are the same to two decimals",
        )
        _require(self.prompts >= 0, f"samples.prompts must not be negative, got {self.prompts}")
        _require(
            0 < self.prompt_duration < math.inf,
            f"samples.prompt_duration must be above 0 s, got {self.prompt_duration}",
        )
        _require(0 <= self.seed < 2**64, f"samples.seed must be from 0 to 2**64 - 1, got {self.seed}")


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
        _require(
            self.max_steps == -1 or self.max_steps >= 1,
            f"trainer.max_steps must be -1 or at least 1, got {self.max_steps}",
        )
        _require(
            self.max_epochs == -1 or self.max_epochs >= 1,
            f"trainer.max_epochs must be -1 or at least 1, got {self.max_epochs}",
        )
        for name in ("val_check_interval", "log_every_n_steps", "accumulate_grad_batches", "num_nodes"):
            _require(
                getattr(self, name) >= 1, f"trainer.{name} must be at least 1, got {getattr(self, name)}"
            )
        _require(
            self.gradient_clip_val is None or self.gradient_clip_val > 0,
            f"trainer.gradient_clip_val must be above 0 or null, got {self.gradient_clip_val}",
        )
        _require(
            self.process_timeout_minutes > 0,
            f"trainer.process_timeout_minutes must be above 0, got {self.process_timeout_minutes}",
        )
        self.max_seconds  # noqa: B018  (raises on a malformed time)

    @property
    def max_seconds(self) -> float:
        """`max_time` in seconds, infinite when unset."""
        if self.max_time is None:
            return math.inf
        parts = self.max_time.split(":")
        _require(
            len(parts) == 4 and all(part.isdecimal() and part.isascii() for part in parts),
            f"trainer.max_time must look like DD:HH:MM:SS (ten minutes: 00:00:10:00), got {self.max_time!r}",
        )
        days, hours, minutes, seconds = (int(part) for part in parts)
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        _require(total > 0, f"trainer.max_time must be above zero, got {self.max_time!r}")
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
        _require(
            0 <= self.seed_everything < 2**32,
            f"seed_everything must be from 0 to 2**32 - 1, got {self.seed_everything}",
        )
        _require(
            not self.optim.ema_decay or self.trainer.precision != "bf16-true",
            f"optim.ema_decay {self.optim.ema_decay}: bf16-true weights are too coarse to be averaged; "
            "take trainer.precision bf16-mixed",
        )
        nearest = max(1, round(self.data.tbptt_len / lookback)) * lookback
        _require(
            self.data.tbptt_len % lookback == 0,
            f"data.tbptt_len {self.data.tbptt_len} is not a multiple of the largest frame "
            f"(model.frame_sizes[0] = {lookback}): take {nearest}",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain dicts, lists and scalars, ready for YAML, JSON or a checkpoint."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return {key: plain(value) for key, value in dataclasses.asdict(config).items()}


RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "samples.temperature": ("temperatures", lambda value: [value]),
}
"""What options were called in earlier configurations and checkpoints: the present name, and how the value is
written now. Where both are given, the present one counts."""


def _with_present_names(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The same options under the names that they have now (see `RENAMED`)."""
    present: dict[str, Any] = {}
    for key, value in values.items():
        if f"{where}{key}" not in RENAMED:
            present[key] = value
            continue
        name, converted = RENAMED[f"{where}{key}"]
        if name not in values:
            present[name] = converted(value)
    return present


def from_dict(cls: type[Any], values: dict[str, Any], where: str = "") -> Any:
    """Inverse of `to_dict`. Reads what earlier versions wrote, too.

    Args:
        cls: one of the dataclasses of this module.
        values: nested plain values; missing keys take their defaults.
        where: dotted prefix for error messages.

    Raises:
        UserError: a key that `cls` does not know, or a value of the wrong type.
    """
    _require(isinstance(values, dict), f"{where.rstrip('.') or 'it'} must be a table, got {brief(values)}")
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in _with_present_names(values, where).items():
        if key not in hints:
            name = " ".join(f"{where}{key}".split())[:_MOST_SHOWN]
            raise UserError(f"unknown option {name}; known here: {', '.join(sorted(hints))}")
        arguments[key] = checked(value, hints[key], f"{where}{key}")
    for entry in dataclasses.fields(cls):
        is_needed = entry.default is entry.default_factory is dataclasses.MISSING
        _require(entry.name in arguments or not is_needed, f"{where}{entry.name} is missing")
    return cls(**arguments)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested options `base` with those in `changes` put in their place; neither is changed."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            value = merged(inner, value)
        result[key] = value
    return result


def checked(value: Any, hint: Any, name: str) -> Any:
    """`value` as an instance of `hint`.

    Args:
        value: anything that YAML, JSON or a checkpoint can hold.
        hint: one of the kinds of type that dataclasses of plain values use: `bool`, `int`, `float`, `str`,
            `dict`, a dataclass, a `Literal`, ``tuple[X, ...]``, ``list[X]``, ``dict[str, X]``, a union.
        name: of the value, for error messages.

    Raises:
        UserError: it is none.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        _require(isinstance(value, dict), f"{name} must hold options of its own, got {brief(value)}")
        return from_dict(typing.cast(type, hint), value, f"{name}.")
    if origin is Literal:
        fits = any(value == known and type(value) is type(known) for known in arguments)
        _require(fits, f"{name} must be one of {', '.join(map(str, arguments))}, got {brief(value)}")
        return value
    if origin in (tuple, list):
        _require(isinstance(value, list | tuple), f"{name} must be a list, got {brief(value)}")
        return origin(checked(item, arguments[0], name) for item in value)
    if origin is dict:
        _require(
            isinstance(value, dict) and all(isinstance(key, str) for key in value),
            f"{name} must be a table, got {brief(value)}",
        )
        return {
            key: checked(item, arguments[1], f"{name}.{key}"[:_MOST_SHOWN]) for key, item in value.items()
        }
    return _one_of(value, arguments if origin in (types.UnionType, typing.Union) else (hint,), name)


def _one_of(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    """`value` as an instance of one of the types of a union, dataclasses and literals among them."""
    if value is None and type(None) in kinds:
        return None
    tables = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if tables and isinstance(value, dict):
        return checked(value, tables[0], name)
    literals = [kind for kind in kinds if typing.get_origin(kind) is Literal]
    words = tuple(word for literal in literals for word in typing.get_args(literal))
    if isinstance(value, str) and value in words:
        return value
    wanted = tuple(kind for kind in kinds if kind not in (type(None), *literals, *tables))
    if float in wanted and isinstance(value, int | str) and not isinstance(value, bool):
        if isinstance(value, str) and str in wanted:
            return value
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except (ValueError, OverflowError):
            pass
    fits = isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))
    allowed = " or ".join([*(kind.__name__ for kind in wanted), *(["table"] if tables else []), *words])
    _require(fits, f"{name} must be of type {allowed}, got {brief(value)}")
    is_number = not isinstance(value, int) or -(2**64) < value < 2**64  # larger ones cannot even be printed
    _require(is_number, f"{name} must have at most 64 bits, got {brief(value)}")
    return value


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
