"""Which options are worth it? Trains rows of options at an equal budget over seeds, and compares them.

    python scripts/ablate.py FOLDER --table cells --out ablations/cells
    python scripts/ablate.py FOLDER --time 4m --seeds 2 --out ablations/mine \\
        --row gru --row "lstm: model.rnn=lstm" --row "no h0: model.learn_h0=false"

Tables are defined in configs/ablations.yaml, or in a file of your own (--tables). OUT gets ablation.md, .csv
and .png after every run. Interrupted in any way, the same command goes on (docs/ablations.md).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import re
import statistics
import subprocess
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

import samplernn
from samplernn.cli import Parser
from samplernn.config import Config, presets
from samplernn.messages import UserError, one_line
from samplernn.reading import read_json, read_yaml
from samplernn.storage import write_text
from samplernn.values import from_dict, merged, to_dict

TABLES = Path(__file__).parents[1] / "configs" / "ablations.yaml"
BASE: dict[str, Any] = {
    "samples": {"num": 0},  # no time for audio,
    "optim": {"patience": 0},  # no early end,
    "checkpoint": {"every_minutes": 1.0},  # little lost when killed
}
TABLE_KEYS = ("title", "config", "budget", "seeds", "options", "rows", "grid")
MODEL_KEYS = ("head", "q_levels", "quantization")
"""Options of the model that rows must share, or their bits do not compare."""
FREE_DATA_KEYS = ("batch_size", "tbptt_len", "segment_duration", "cache_dir", "decode_timeout")
"""Options of the data in which rows may differ: they change how audio is read, not what is scored."""
GENERATED_SECONDS = 4.0


class Row(NamedTuple):
    """One variant: its label, and its own options by dotted keys."""

    label: str
    options: dict[str, Any]

    def run(self, seed: int) -> str:
        """Name of its run with a seed."""
        slug = re.sub(r"[^\w.]+", "-", self.label).strip("-.").lower()
        return f"{slug or 'row'}-seed{seed}"


class Table(NamedTuple):
    """What is compared."""

    title: str
    budget: str
    seeds: list[int]
    rows: list[Row]
    base: dict[str, Any]
    """Nested options that all rows share."""

    def config(self, row: Row, seed: int) -> Config:
        """All options of a run. Raises UserError."""
        try:
            options = merged(merged(self.base, nested(row.options)), {"seed_everything": seed})
            config: Config = from_dict(Config, options)
            return config
        except UserError as error:
            raise UserError(f"row {row.label}: {error}") from None


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested ones."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        result = merged(result, value)
    return result


def limits(budget: str) -> dict[str, Any]:
    """Options of the Trainer for ``90s``, ``1h30m`` of training, or ``2000 steps``. Raises UserError."""
    if steps := re.fullmatch(r"(\d+) *steps", budget):
        return {"max_steps": int(steps[1]), "max_time": None, "max_epochs": -1}
    parts = re.fullmatch(r"(?:(\d+) *h)? *(?:(\d+) *m(?:in)?)? *(?:(\d+) *s)?", budget)
    if not parts or not any(parts.groups()):
        raise UserError(f"budget {budget}: write the time of training per run, such as 4m, or 2000 steps")
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    minutes, seconds = minutes + seconds // 60, seconds % 60
    days, hours = divmod(hours + minutes // 60, 24)
    return {
        "max_steps": -1,
        "max_time": f"{days:02}:{hours:02}:{minutes % 60:02}:{seconds:02}",
        "max_epochs": -1,
    }


def all_values(key: str) -> list[Any]:
    """Every word that an option knows, or true and false. Raises UserError."""
    kind: Any = Config
    for part in key.split("."):
        hints = typing.get_type_hints(kind) if isinstance(kind, type) else {}
        if part not in hints:
            raise UserError(f"grid {key}: unknown option; known here: {', '.join(sorted(hints))}")
        kind = hints[part]
    values = [True, False] if kind is bool else list(typing.get_args(kind))
    if kind is not bool and typing.get_origin(kind) is not Literal:
        raise UserError(f"grid {key}: all is for options that are a choice; give a list of values")
    return values


def grid_rows(grid: dict[str, Any]) -> Iterator[Row]:
    """A row for every combination of values."""
    axes = {key: all_values(key) if values == "all" else values for key, values in grid.items()}
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"grid {key} must be a list of values, or all, got {values!r}")
    for combination in itertools.product(*axes.values()) if axes else ():
        options = dict(zip(axes, combination, strict=True))
        only_word = len(options) == 1 and isinstance(combination[0], str)
        parts = (
            f"{key.rpartition('.')[2]} {json.dumps(value).strip(chr(34))}" for key, value in options.items()
        )
        yield Row(combination[0] if only_word else ", ".join(parts), options)


def define(definition: dict[str, Any]) -> Table:
    """Check a definition before anything is trained; see configs/ablations.yaml for what it holds.

    Raises:
        UserError: an unknown entry or option, a value that does not fit, rows whose bits do not compare.
    """
    if unknown := sorted(set(definition) - set(TABLE_KEYS)):
        raise UserError(f"table: unknown entry {unknown[0]}; known here: {', '.join(TABLE_KEYS)}")
    preset = str(definition.get("config", "small"))
    file = presets().get(preset, Path(preset))
    base = merged(read_yaml(file) or {}, BASE)
    base = merged(base, nested(definition.get("options") or {}))
    budget, seeds = str(definition.get("budget", "4m")), definition.get("seeds", 1)
    base = merged(base, {"trainer": limits(budget)})
    rows = [Row(str(label), options or {}) for label, options in (definition.get("rows") or {}).items()]
    rows += grid_rows(definition.get("grid") or {})
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not rows or not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError("table: it needs rows or a grid, and seeds: how many, or a list such as [0, 1, 2]")
    names = [row.run(0) for row in rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"table: two rows are called {sorted(twice)[0].removesuffix('-seed0')}")
    table = Table(str(definition.get("title", "Ablation")), budget, seeds, rows, base)
    require_comparable(table)
    return table


def require_comparable(table: Table) -> None:
    """Raises UserError if a row's options do not fit, or bits of rows do not compare."""
    first: dict[str, Any] = {}
    for row in table.rows:
        for key in row.options:
            if key in ("trainer.max_time", "trainer.max_steps", "trainer.max_epochs", "seed_everything"):
                raise UserError(
                    f"row {row.label}: {key} is the same for all rows: set the budget or the seeds"
                )
        values = to_dict(table.config(row, 0))
        found = {f"model.{key}": values["model"][key] for key in MODEL_KEYS}
        found |= {f"data.{key}": v for key, v in values["data"].items() if key not in FREE_DATA_KEYS}
        first = first or found
        for key, value in found.items():
            if value != first[key]:
                raise UserError(
                    f"row {row.label} has {key} {value}, the first row {first[key]}: bits compare only at "
                    "equal head, quantization, gain and split; make tables of their own"
                )


def result_of(out: Path, table: Table, row: Row, seed: int) -> dict[str, Any] | None:
    """What has come of a run; None: it is to be done, perhaps once more.

    Raises:
        UserError: the run there was made with other options.
    """
    name = row.run(seed)
    file = out / "results" / f"{name}.json"
    if not file.exists():
        return None
    result: dict[str, Any] = read_json(file)
    if result.get("options") != to_dict(table.config(row, seed)):
        raise UserError(f"{file}: this run had other options; choose another --out, or delete its folders")
    return result


def train(folder: Path, out: Path, table: Table, row: Row, seed: int) -> str | None:
    """Begin or continue a run by the command of the package; returns why it failed, None if it has not."""
    name, config_file = row.run(seed), out / "configs" / f"{row.run(seed)}.yaml"
    command = [sys.executable, "-m", "samplernn", "train", str(folder), "--name", name, "--quiet"]
    if (out / "runs" / name / "config.yaml").exists():
        command.append("--resume")
    else:
        config_file.parent.mkdir(parents=True, exist_ok=True)
        options = to_dict(table.config(row, seed))
        config_file.write_text(yaml.safe_dump(options, sort_keys=False), "utf-8")
        command += ["--config", str(config_file)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, errors="replace")
    if done.returncode in (128 + 1, 128 + 2, 128 + 15):  # a signal: it has saved
        raise KeyboardInterrupt
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return said[-1] if said else f"ended with exit code {done.returncode}; too little memory?"
    return None


def measure(folder: Path, run: Path) -> dict[str, Any]:
    """Score a finished run on its whole test split, and time its generation. Raises UserError."""
    checkpoint = samplernn.load(run)
    score = samplernn.evaluate(checkpoint, folder, progress=False, cache_dir=checkpoint.config.data.cache_dir)
    playback = samplernn.stream(checkpoint, duration=2 * GENERATED_SECONDS, on_trap="off")
    half, samples, started = GENERATED_SECONDS * checkpoint.config.data.sample_rate, 0, time.perf_counter()
    before = 0
    for block in playback:
        samples += block.shape[1]
        if not before and samples >= half:  # what comes before compiles and warms up
            before, started = samples, time.perf_counter()
    generation = (samples - before) / (time.perf_counter() - started)
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    speeds = [float(row["train/samples_per_s"]) for row in rows if row.get("train/samples_per_s")]
    curve, seconds = [], 0.0
    for row in rows:
        seconds = float(row.get("train/seconds") or seconds)
        if row.get("validation/bits_per_sample"):
            curve.append([seconds, float(row["validation/bits_per_sample"])])
    return {
        "parameters": sum(parameter.numel() for parameter in checkpoint.build().parameters()),
        "steps": read_json(run / "run.json")["step"],
        "bits": score.bits_per_sample,
        "num_samples": score.num_samples,
        "baselines": score.baselines.to_dict(),
        "gain": checkpoint.gain,
        "train_samples_per_s": statistics.median(speeds) if speeds else math.nan,
        "generate_samples_per_s": generation,
        "curve": curve,
    }


def gathered(table: Table, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A line of the table per row: means over seeds, differences to the first row seed by seed."""
    lines = []
    for row in table.rows:
        found = {seed: results[row.run(seed)] for seed in table.seeds if row.run(seed) in results}
        good = {seed: result for seed, result in found.items() if "bits" in result}
        first = {seed: results.get(table.rows[0].run(seed), {}).get("bits") for seed in good}
        differences = [good[seed]["bits"] - bits for seed, bits in first.items() if bits is not None]
        line: dict[str, Any] = {
            "row": row.label,
            "options": " ".join(f"{key}={json.dumps(value)}" for key, value in row.options.items()),
            "n": len(good),
        }
        for name, values in (("bits", [one["bits"] for one in good.values()]), ("difference", differences)):
            line[name] = statistics.mean(values) if values else math.nan
            line[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else math.nan
        for name in ("parameters", "steps", "train_samples_per_s", "generate_samples_per_s"):
            line[name] = statistics.mean(one[name] for one in good.values()) if good else math.nan
        failures = (
            f"seed {seed}: {result['failure']}" for seed, result in found.items() if "failure" in result
        )
        lines.append({**line, "failures": "; ".join(failures)})
    return lines


def as_markdown(table: Table, lines: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> str:
    """The table for people."""

    def number(value: float, form: str, spread: float = math.nan) -> str:
        shown = "–" if math.isnan(value) else format(value, form)
        return shown if math.isnan(spread) else f"{shown} ± {spread:.3f}"

    text = [
        f"# {table.title}",
        "",
        f"{table.budget} of training per run, seeds {', '.join(map(str, table.seeds))}; samplernn "
        f"{samplernn.__version__}. Test bits of the best checkpoint: mean ± standard deviation over n seeds, "
        "lower is better; differences to the first row are taken seed by seed.",
        "",
        "| row | parameters | steps | test bits | difference | n | trains, samples/s | plays, samples/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for index, line in enumerate(lines):
        cells = [
            line["row"].replace("|", "\\|"),
            number(line["parameters"] / 1e6, ".2f") + " M",
            number(line["steps"], ",.0f"),
            number(line["bits"], ".3f", line["bits_std"]),
            number(line["difference"], "+.3f", line["difference_std"]) if index else "",
            str(line["n"]),
            number(line["train_samples_per_s"], ",.0f"),
            number(line["generate_samples_per_s"], ",.0f"),
        ]
        text.append(f"| {' | '.join(cells)} |")
    if good := [result for result in results.values() if "bits" in result]:
        known, baselines = good[0], good[0]["baselines"]
        text += [
            "",
            f"On these {known['num_samples']:,} samples (gain {known['gain']:.3f}): previous sample "
            f"{baselines['previous_sample']:.3f}, unigram {baselines['unigram']:.3f}.",
        ]
    wanted = len(table.rows) * len(table.seeds)
    if len(results) < wanted:
        text += ["", f"**Not finished: {len(results)} of {wanted} runs.**"]
    text += ["", *(f"- {line['row']}: {line['failures']}" for line in lines if line["failures"])]
    return "\n".join(text).rstrip() + "\n"


def draw(table: Table, lines: list[dict[str, Any]], results: dict[str, dict[str, Any]], file: Path) -> None:
    """Test bits with error bars; validation bits over the time of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, max(4.0, 1.5 + 0.35 * len(lines))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (row, line) in enumerate(zip(table.rows, lines, strict=True)):
        colour = f"C{index % 10}"
        spread = 0.0 if math.isnan(line["bits_std"]) else line["bits_std"]
        left.errorbar(line["bits"], index, xerr=spread, fmt="o", capsize=3, color=colour)
        for seed in table.seeds:
            if curve := results.get(row.run(seed), {}).get("curve"):
                seconds, bits = zip(*curve, strict=True)
                right.plot(
                    seconds, bits, ".-", color=colour, label=row.label if seed == table.seeds[0] else None
                )
    left.set_yticks(range(len(lines)), [line["row"] for line in lines])
    left.invert_yaxis()
    left.set_xlabel("test bits per sample")
    if good := [result for result in results.values() if "bits" in result]:
        previous = good[0]["baselines"]["previous_sample"]
        right.axhline(previous, color="0.4", linestyle="--", label="previous sample")
    right.set(xlabel="seconds of training", ylabel="validation bits per sample", yscale="log")
    right.legend(fontsize=7)
    figure.suptitle(f"{table.title} ({table.budget} per run)")
    figure.savefig(file)


def write_tables(out: Path, table: Table, results: dict[str, dict[str, Any]]) -> None:
    """ablation.md, .csv and .png of the runs that have ended."""
    lines = gathered(table, results)
    write_text(out / "ablation.md", as_markdown(table, lines, results))
    with (out / "ablation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    draw(table, lines, results, out / "ablation.png")


def study(table: Table, folder: Path, out: Path) -> int:
    """Train and measure whatever has not been yet, seed by seed over all rows; returns the exit code."""
    runs = [(row, seed) for seed in table.seeds for row in table.rows]
    found = ((row.run(seed), result_of(out, table, row, seed)) for row, seed in runs)
    results = {
        name: result for name, result in found if result and "bits" in result
    }  # what failed is tried again
    for number, (row, seed) in enumerate(runs, 1):
        name = row.run(seed)
        if name in results:
            continue
        print(f"[{number}/{len(runs)}] {row.label}, seed {seed} …", file=sys.stderr, flush=True)
        failure = train(folder, out, table, row, seed)
        try:
            measured = {"failure": one_line(failure)} if failure else measure(folder, out / "runs" / name)
        except UserError as error:
            measured = {"failure": str(error)}
        results[name] = {"options": to_dict(table.config(row, seed)), **measured}
        (out / "results").mkdir(parents=True, exist_ok=True)
        write_text(out / "results" / f"{name}.json", json.dumps(results[name], indent=1) + "\n")
        outcome = measured.get("failure") or f"{measured['bits']:.3f} bits after {measured['steps']:,} steps"
        print(f"[{number}/{len(runs)}] {row.label}, seed {seed}: {outcome}", file=sys.stderr, flush=True)
        write_tables(out, table, results)
    write_tables(out, table, results)
    return int(any("failure" in result for result in results.values()))


def parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="ablate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, help="of audio")
    add("--out", type=Path, default=Path("ablation"), help="folder of the study (default: ablation)")
    add("--table", metavar="NAME", help="one of those in --tables")
    add("--tables", metavar="FILE", type=Path, default=TABLES, help="default: configs/ablations.yaml")
    add("--row", action="append", default=[], metavar="'LABEL: KEY=VALUE …'", help="one more row")
    add(
        "--grid", action="append", default=[], metavar="KEY=[VALUE,…]", help="rows for all values, or KEY=all"
    )
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of all rows")
    add("--config", help="what rows differ from: a preset or a file (default: small)")
    add("--time", help="of training per run, such as 4m or 90s (default: 4m)")
    add("--steps", type=int, help="per run, instead")
    add("--seeds", type=int, help="how many (default: 1; more may follow later)")
    add("--dry-run", action="store_true", help="only list the runs")
    return parser


def assignments(texts: list[str]) -> dict[str, Any]:
    """``model.dim=128`` and the like by key. Raises UserError."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is no option; write KEY=VALUE, such as model.dim=128")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"{text!r}: its value cannot be read") from None
    return found


def definition_of(options: argparse.Namespace) -> dict[str, Any]:
    """The definition in the file, with what was typed. Raises UserError."""
    definition: dict[str, Any] = {}
    if options.table or not (options.row or options.grid):
        values = read_yaml(options.tables)
        tables = values.get("tables") if isinstance(values, dict) else None
        if not isinstance(tables, dict) or options.table not in tables:
            has = ", ".join(tables) if isinstance(tables, dict) else "no tables"
            raise UserError(f"name a --table of {options.tables} ({has}), or give a --row")
        title = {"title": options.table}
        definition = merged(merged(title, values.get("common") or {}), tables[options.table])
    rows = {}
    for text in options.row:
        label, colon, rest = text.partition(": ")
        words = re.split(r"\s+(?=[\w.]+=)", rest if colon else text)
        rows[label] = assignments(words) if colon or "=" in text else {}
    typed = {
        "config": options.config,
        "budget": options.time or (f"{options.steps} steps" if options.steps else None),
        "seeds": options.seeds,
        "options": assignments(options.set),
        "rows": rows,
        "grid": assignments(options.grid),
    }
    return merged(definition, {key: value for key, value in typed.items() if value not in (None, {})})


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1: a run failed; 2: a mistake of the user's; 130: interrupted."""
    try:
        options = parser().parse_args(argv)
        table = define(definition_of(options))
        folder, out = options.folder.absolute(), options.out.absolute()
        if options.dry_run:
            for seed, row in itertools.product(table.seeds, table.rows):
                result = result_of(out, table, row, seed) or {}
                state = "done" if "bits" in result else "to be done"
                print(f"{row.run(seed):32} {state}")
            return 0
        code = study(table, folder, out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    print((out / "ablation.md").read_text("utf-8"))
    return code


if __name__ == "__main__":
    sys.exit(main())
