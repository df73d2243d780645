"""Text files of anybody: plain values or one line, soon and in little memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from samplernn.config import UserError
from samplernn.reading import read_json, read_text, read_yaml

BOMB = "\n".join(
    ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
)
"""A kilobyte that stands for four billion numbers."""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\xff\xfe\x00\x01", "is not text in UTF-8 (byte 0)"),
        (b"[" * 5000, "too deep"),
        (b"{a: " * 5000, "too deep"),
        (BOMB.encode(), "too many values"),
        (b"a: &x [*x]", "refers to *x within itself"),
        (b"a: b: c", "line 1: not YAML of plain values: mapping values are not allowed here"),
        (b"a: 2001-99-99", "not YAML of plain values: month must be in 1..12"),
        (b"a: " + b"9" * 5000, "not YAML of plain values: Exceeds the limit"),
        (b"? [1]\n: 2", "line 1: not YAML of plain values: found unhashable key"),
        (b"a: !!python/object/apply:os.system [touch executed]", "could not determine a constructor"),
        (b"a: \x00", "unacceptable character"),
    ],
)
def test_yaml_that_is_not_ours_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("it.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml("it.yaml")
    said = str(caught.value)
    assert said.startswith("it.yaml")
    assert complaint in said
    assert len(said) < 250
    assert os.listdir() == ["it.yaml"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[" * 200_000, "too deep"),
        (b"1" * 5000, "not JSON: Exceeds the limit"),
        (b'{"a":', "not JSON: Expecting value: line 1 column 6"),
        (b"", "not JSON: Expecting value"),
        (b"\x80", "is not text in UTF-8 (byte 0)"),
    ],
)
def test_json_that_is_not_ours_is_one_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "it.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert complaint in str(caught.value)


def test_references_are_plain_yaml(tmp_path: Path) -> None:
    """Whoever writes a configuration by hand may use anchors and merge keys."""
    file = tmp_path / "it.yaml"
    file.write_text("base: &base {dim: 8, rnn: gru}\nmodel:\n  <<: *base\n  dim: 16\n", "utf-8")
    assert read_yaml(file)["model"] == {"dim": 16, "rnn": "gru"}


def test_what_is_no_small_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, complaint in (
        ("pipe", "is not a file"),
        (".", "is not a file"),
        ("none", "cannot be read: No such file"),
    ):
        with pytest.raises(UserError, match=complaint):
            read_text(tmp_path / name)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(UserError, match="larger than 0 MiB"):
        read_text(tmp_path / "large", 10)
