"""Reading and writing trained models. Nothing is ever unpickled: a downloaded checkpoint cannot run code.

Three forms hold the same `Checkpoint`:

- a Lightning ``.ckpt`` written by training, read with ``weights_only=True``;
- a run directory: its ``checkpoints/best.ckpt``, else ``checkpoints/last.ckpt``;
- an exported directory: ``model.safetensors``, ``config.yaml``, ``README.md``.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from samplernn import __version__
from samplernn.config import Config, ModelConfig, UserError, brief, to_dict
from samplernn.model.baselines import PairCounts
from samplernn.model.codec import Codec
from samplernn.model.entry import (
    FORMAT,
    Entry,
    Shape,
    read_counts,
    read_entry,
    require_archive,
    require_shapes,
    require_values,
    shapes_of,
)
from samplernn.model.heads import Head, head_of
from samplernn.model.network import SampleRNN
from samplernn.reading import read_yaml

ENTRY = "samplernn"
"""Key of our own plain values inside a Lightning checkpoint."""
_MODEL_PREFIX = "model."
_COUNTS = "baselines.pair_counts"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and everything that belongs to its meaning."""

    config: Config
    """Of the run that trained it."""
    weights: dict[str, Tensor]
    """State dict of `SampleRNN`."""
    gain: float
    """The corpus gain: audio is multiplied by it before quantization."""
    pair_counts: PairCounts
    """Code pairs of the training split, ``[Q, Q]``: the baselines."""
    split: dict[str, list[list[Any]]]
    """Which audio was `train`, `validation` and `test` (an export leaves `train` out)."""
    results: dict[str, Any] = field(default_factory=dict)
    """`step`, `validation_bits_per_sample` and other facts about the training."""
    source: Path | None = None
    """The file that it was read from."""

    @property
    def head(self) -> Head:
        """What the network's outputs mean."""
        return head_of(self.config.model)

    @functools.cached_property
    def codec(self) -> Codec:
        """What turns audio into the model's codes and back."""
        return Codec.of(self.config.model, self.gain)

    def build(self) -> SampleRNN:
        """The network with its weights, in eval mode.

        Raises:
            UserError: the validation of the weights was not finite. (Or, of one that was not read by
                `load`: they do not fit the configuration, or are not finite.)
        """
        if self.results.get("diverged"):  # finite weights, but too large for anything to come of them
            raise UserError(
                f"{self.source}: its validation was not finite, training had diverged; use an earlier one"
            )
        require_shapes(shapes_of(self.weights, self.source), self.config.model, self.source)
        require_values(self.weights, self.source)
        with torch.device("meta"):  # no time spent on initial values, no random numbers drawn
            model = SampleRNN(self.config.model)
        model.load_state_dict(self.weights, assign=True)
        return model.eval()

    def weights_hash(self) -> str:
        """SHA-256 over names and values of the weights: the identity of the model, in any form."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].detach().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def entry(self) -> dict[str, Any]:
        """Everything but the weights, as plain values and tensors, for a Lightning checkpoint."""
        return {
            "format": FORMAT,
            "version": __version__,
            "config": to_dict(self.config),
            "gain": self.gain,
            "pair_counts": torch.from_numpy(self.pair_counts),
            "split": self.split,
            "results": self.results,
        }


def find(path: str | Path) -> Path:
    """The file that CHECKPOINT names: a ``.ckpt``, a run's best or last, or an export's weights.

    Raises:
        UserError: nothing there.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint, run or exported directory")
    candidates = [
        path / name for name in ("model.safetensors", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{path}: holds no model (looked for model.safetensors and checkpoints/best.ckpt, last.ckpt). "
        "Give a .ckpt file, a run directory or an exported directory"
    )


def load(path: str | Path) -> Checkpoint:
    """Read any of the three forms. What it returns can be built: `entry` has checked all of it.

    Raises:
        UserError: missing, damaged, or not a samplernn checkpoint.
    """
    file = find(path)
    if file.name.endswith(".safetensors"):
        return _load_export(file)
    saved = read_archive(file)
    if ENTRY not in saved:
        raise UserError(f"{file}: a checkpoint, but not one of samplernn")
    if not isinstance(saved.get("state_dict"), dict):
        raise UserError(
            f"{file}: state_dict must be a table of tensors, got {brief(saved.get('state_dict'))}"
        )
    weights = {
        name.removeprefix(_MODEL_PREFIX): value
        for name, value in saved["state_dict"].items()
        if isinstance(name, str) and name.startswith(_MODEL_PREFIX)
    }
    values = saved[ENTRY]
    entry = read_entry(values, file)
    require_shapes(shapes_of(weights, file), entry.config.model, file)
    return _checkpoint(entry, weights, values.get("pair_counts"), file)


def read_archive(file: Path) -> dict[str, Any]:
    """All that a Lightning checkpoint holds; nothing of it is executed.

    Raises:
        UserError: damaged, or not a checkpoint.
    """
    require_archive(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles; what is wrong with them is said below
            saved = _load_archive(file)
    except Exception as error:  # PyTorch meets damage with whatever happens to fail
        raise UserError(f"{file}: damaged, or not a checkpoint of samplernn") from error
    if not isinstance(saved, dict):
        raise UserError(f"{file}: a checkpoint, but not one of samplernn")
    return saved


def _load_archive(file: Path) -> Any:
    """What `torch.save` has written, with its tensors on the CPU.

    They are mapped into memory as long as one of them is in use, so that little is read of a file of which
    little is needed; where the file system cannot do that, all is read.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError):  # damaged, or some network, FUSE and container file systems
        return torch.load(file, map_location="cpu", weights_only=True, mmap=False)


def _checkpoint(entry: Entry, weights: dict[str, Tensor], counts: Any, source: Path) -> Checkpoint:
    """Inverse of `Checkpoint.entry`; the shapes of the weights are those of the network. Raises UserError."""
    require_values(weights, source)
    return Checkpoint(
        config=entry.config,
        weights=weights,
        gain=entry.gain,
        pair_counts=read_counts(counts, head_of(entry.config.model).num_baseline_codes, source),
        split=entry.split,
        results=entry.results,
        source=source,
    )


def export(checkpoint: Checkpoint, folder: str | Path) -> Path:
    """Write a model that explains itself: ``model.safetensors``, ``config.yaml``, ``README.md``.

    Args:
        checkpoint: any loaded checkpoint.
        folder: made if absent.

    Returns:
        The folder.

    Raises:
        UserError: the folder already holds files, or cannot be written.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; choose another folder for the export")
    entry = checkpoint.entry()
    tensors = {name: value.detach().contiguous() for name, value in checkpoint.weights.items()}
    tensors[_COUNTS] = entry.pop("pair_counts")
    entry["split"] = {part: spans for part, spans in checkpoint.split.items() if part != "train"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.yaml").write_text(
            yaml.safe_dump(entry, sort_keys=False, allow_unicode=True), "utf-8"
        )
        (folder / "README.md").write_text(_model_card(checkpoint, folder), "utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}: cannot write the export: {error}") from error
    return folder


def _load_export(file: Path) -> Checkpoint:
    sidecar = file.parent / "config.yaml"
    if not sidecar.exists():
        raise UserError(f"{file.parent}: damaged export, or not one of samplernn: it has no config.yaml")
    entry = read_entry(read_yaml(sidecar), sidecar)
    try:
        weights = _read_tensors(file, entry.config.model)
    except UserError:
        raise
    except Exception as error:  # safetensors has errors of its own, and PyTorch's for dtypes that it lacks
        raise UserError(
            f"{file.parent}: damaged export, or not one of samplernn ({_words(error)})"
        ) from error
    counts = weights.pop(_COUNTS)
    return _checkpoint(entry, weights, counts, file)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _read_tensors(file: Path, model: ModelConfig) -> dict[str, Tensor]:
    """The tensors of an export, mapped where the file system can. Raises UserError before much is read."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            _require_tensors({name: tuple(opened.get_slice(name).get_shape()) for name in names}, model, file)
            return {name: opened.get_tensor(name) for name in names}
    except UserError:
        raise
    except Exception:  # damaged, or some network, FUSE and container file systems
        tensors: dict[str, Tensor] = safetensors.torch.load(file.read_bytes())
        _require_tensors({name: tuple(tensor.shape) for name, tensor in tensors.items()}, model, file)
        return tensors


def _require_tensors(found: dict[str, Shape], model: ModelConfig, file: Path) -> None:
    if found.pop(_COUNTS, None) is None:
        raise UserError(f"{file}: {_COUNTS} is missing, so it is damaged or no model of samplernn")
    require_shapes(found, model, file)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _model_card(checkpoint: Checkpoint, folder: Path) -> str:
    model, data, results = checkpoint.config.model, checkpoint.config.data, checkpoint.results
    parameters = sum(value.numel() for value in checkpoint.weights.values())
    facts = {
        "tiers": f"{model.n_tiers}, frame sizes {list(model.frame_sizes)}",
        "cell": f"{model.n_rnn} x {model.rnn}, {model.dim} units",
        "parameters": f"{parameters / 1e6:.2f} M",
        "codes": f"{model.q_levels}, {model.quantization}",
        "sample rate": f"{data.sample_rate} Hz",
        "weights (SHA-256)": checkpoint.weights_hash()[:16],
        **{name.replace("_", " "): _short(value) for name, value in results.items() if value is not None},
    }
    gain = "each file's own" if data.normalise == "clip" else f"{checkpoint.gain:.4f}"
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""# {folder.resolve().name}: a SampleRNN model

Raw audio, one sample at a time (Mehri et al., ICLR 2017), trained with samplernn {__version__}.

| what | value |
| --- | --- |
{rows}

    samplernn generate {folder.resolve().name} --duration 10

`model.safetensors` holds the weights and the code counts of the baselines, `config.yaml` every option
of the training run and which files were held out. Bits per sample compare only at equal
quantization, gain ({gain}) and split.
"""
