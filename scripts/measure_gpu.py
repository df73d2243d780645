"""Every figure of docs/benchmarks.md that needs a GPU, in one go: some minutes, and the training run.

    python scripts/measure_gpu.py FOLDER --minutes 8 --out gpu

Each part writes what it found to OUT/PART.json as soon as it is there; one that fails says so, and the others
go on. At the end the table stands in OUT/figures.md.

- tests: those marked `gpu` (where pytest is installed).
- generate: every engine, one to thousands of streams.
- gradient: of the table, by adding and by products.
- train: steps of the preset, as training takes them and plainly; with twice the lanes, too.
- run: trains on FOLDER for so many minutes and evaluates the test split.
- bits: how far the CUDA engine is from the network, in bits, on audio of FOLDER with the weights of that run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

STREAMS, SAMPLES = 64, 2048
"""That both engines score."""


def samplernn(*words: object, cwd: Path | None = None) -> str:
    """What a command prints to standard output; its messages pass."""
    command = [sys.executable, "-m", "samplernn", *(str(word) for word in words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd).stdout


def tests(options: argparse.Namespace) -> dict[str, Any]:
    """The tests marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "tests"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout[-3000:], file=sys.stderr)
    return {"summary": done.stdout.strip().splitlines()[-1:], "exit_code": done.returncode}


def generate(options: argparse.Namespace) -> dict[str, Any]:
    """Samples per second of every engine."""
    found: dict[str, Any] = json.loads(samplernn("benchmark", "--preset", options.preset, "--json"))
    return found


def gradient(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds for the gradient of the table, at the preset's sizes and with real codes."""
    from samplernn.insight.benchmark.results import preset_config
    from samplernn.model.network import table_gradient_by_adding, table_gradient_by_products

    config = preset_config(options.preset)
    lanes, length, frame = config.data.lanes, config.data.tbptt_len, config.model.frame_sizes[-1]
    spread = torch.randn(lanes, length + frame - 1, device="cuda") * 12  # audio is mostly quiet
    codes = (spread.round().long() + 128).clamp(0, config.model.q_levels - 1)
    grad = torch.randn(lanes * length, config.model.dim, device="cuda", dtype=torch.bfloat16)
    shape = (frame, config.model.q_levels, config.model.dim)
    found: dict[str, Any] = {}
    for name, sums in (("adding", table_gradient_by_adding), ("products", table_gradient_by_products)):
        seconds = []
        for _ in range(10):
            torch.cuda.synchronize()
            started = time.perf_counter()
            sums(codes.unfold(1, frame, 1), grad, shape)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        found[f"by_{name}_ms"] = round(1000 * sorted(seconds)[5], 3)
    return found


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Samples per second of training."""
    words = ("benchmark", "--what", "train", "--preset", options.preset, "--json")
    found: dict[str, Any] = json.loads(samplernn(*words))
    lanes = 2 * found["results"][0]["streams"]
    found["twice_the_lanes"] = json.loads(samplernn(*words, "--lanes", lanes))["results"]
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """A training run, and its test bits."""
    name, folder = "gpu", options.folder.resolve()
    minutes = ("--max-minutes", options.minutes)
    samplernn("train", folder, "--config", options.preset, "--name", name, *minutes, cwd=options.out)
    found: dict[str, Any] = json.loads(
        samplernn("evaluate", f"runs/{name}", folder, "--json", cwd=options.out)
    )
    return found


def bits(options: argparse.Namespace) -> dict[str, Any]:
    """Bits per sample of the same audio, by the network in float32 and by the CUDA engine."""
    from torch.nn import functional as F

    from samplernn.audio.corpus import prepare
    from samplernn.generation.engines import DTYPES, open_engine
    from samplernn.model.checkpoint import load

    checkpoint = load(options.out / "runs" / "gpu")
    config = checkpoint.config
    data = dataclasses.replace(config.data, cache_dir=str(options.out / "cache"))
    corpus = prepare(options.folder, data, checkpoint.gain, progress=False)
    file = max(corpus.files, key=lambda file: file.num_samples)
    streams = min(STREAMS, file.num_samples // SAMPLES)
    starts = [index * (file.num_samples // streams) for index in range(streams)]  # all over the file
    audio = np.stack([corpus.read(file, start, start + SAMPLES) for start in starts])
    codes = torch.from_numpy(checkpoint.codec.encode(audio))  # [B, T]
    model = checkpoint.build().cuda()
    with torch.inference_mode():
        logits, _ = model(codes.cuda(), model.initial_state(streams))
    log2 = torch.log(torch.tensor(2.0)).item()
    exact = F.cross_entropy(logits.transpose(1, 2), codes.cuda()).item() / log2
    found: dict[str, Any] = {"samples": streams * SAMPLES, "network": exact}
    for dtype in DTYPES["cuda"]:
        engine = open_engine(model, "cuda", dtype)
        engine.start(streams)
        found[dtype] = engine.score(codes).double().mean().item() / log2
        found[f"{dtype}_difference"] = found[dtype] - exact
    return found


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    part.__name__: part for part in (tests, generate, gradient, train, run, bits)
}


def as_markdown(found: dict[str, dict[str, Any]]) -> str:
    """The figures as docs/benchmarks.md would have them."""
    lines = [f"{torch.cuda.get_device_name()}, torch {torch.__version__}", ""]
    for part in ("generate", "train"):
        results = [*found.get(part, {}).get("results", []), *found.get(part, {}).get("twice_the_lanes", [])]
        if results:
            lines += [
                f"| {part} | dtype | streams | samples/s | of the limit |",
                "| --- | --- | --- | --- | --- |",
            ]
        for one in results:
            share = "" if one["fraction_of_limit"] is None else f"{one['fraction_of_limit']:.2f}"
            cells = (one["engine"], one["dtype"], one["streams"], f"{one['samples_per_s']:,.0f}", share)
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        lines.append("")
    for part in ("tests", "gradient", "run", "bits"):
        if part in found:
            lines += [f"{part}: `{json.dumps(found[part])}`", ""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="audio to train on")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training (default: 8)")
    parser.add_argument("--preset", default="reference")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for results (default: gpu)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args(argv)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    if not torch.cuda.is_available():
        parser.error("this measures a GPU, and there is none that PyTorch can use")
    options.out.mkdir(parents=True, exist_ok=True)
    found, failed = {}, []
    for part in options.parts:
        started = time.perf_counter()
        print(f"{part} …", file=sys.stderr, flush=True)
        try:
            found[part] = PARTS[part](options)
        except Exception as error:  # of one part; the time on the machine is dear, and the others go on
            failed.append(part)
            print(f"{part} failed: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        (options.out / f"{part}.json").write_text(json.dumps(found[part], indent=2) + "\n")
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    (options.out / "figures.md").write_text(as_markdown(found))
    print(as_markdown(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
