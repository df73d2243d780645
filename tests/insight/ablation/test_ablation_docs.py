"""docs/ablations.md: its commands can be typed, its table can be read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from samplernn.insight.ablation.tables import define, read_file

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "ablations.md").read_text("utf-8")


def _commands() -> list[str]:
    lines = DOCS.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("    python scripts/ablate.py ")]


def test_every_command_is_understood(
    tmp_path: Path,
    clips: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import ablate

    assert len(_commands()) == 3
    for command in _commands():
        arguments = shlex.split(command.replace("FOLDER", str(clips)))[2:]
        assert ablate.main([*arguments, "--dry-run"]) == 0
        assert "to be done" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_table_of_the_page_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCS, flags=re.S)
    (tmp_path / "mine.yaml").write_text(example)
    table = define(read_file(tmp_path / "mine.yaml")["rates"])
    assert [row.label for row in table.rows] == [
        "usual",
        "slow and wide",
        "lr 2e-3, ema_decay 0.0",
        "lr 2e-3, ema_decay 0.999",
        "lr 8e-3, ema_decay 0.0",
        "lr 8e-3, ema_decay 0.999",
    ]
    assert table.rows[1].config.optim.lr == 1e-3
    assert table.seeds == (0, 1)
