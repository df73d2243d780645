"""What is built contains what is promised: clips with their licences, configurations, types."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LICENCES = {
    "samplernn/clips/LICENSE.md",
    "samplernn/clips/speech/COPYRIGHT.pocketsphinx-testdata",
    "samplernn/clips/piano/COPYRIGHT.musescore-general",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist, built with the backend that is installed here (no network)."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def _clips() -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / "samplernn" / "clips").rglob("*.flac")}


def test_the_wheel_contains_clips_licences_and_configurations(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert len(_clips()) == 36
    assert names >= _clips() | LICENCES | {"samplernn/py.typed", "samplernn/configs/small.yaml"}
    assert names >= {"samplernn/insight/page.css", "samplernn/insight/page.js"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "samplernn = samplernn.cli:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_the_sdist_contains_everything_to_build_and_test(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert names >= _clips() | LICENCES
    assert names >= {"configs/small.yaml", "tests/conftest.py", "Makefile", "LICENSE", "NOTICE", "README.md"}


def test_an_installed_wheel_finds_its_presets_and_clips(built: Path, tmp_path: Path) -> None:
    """Unpacked away from the checkout, as `pip install` would."""
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "import samplernn, samplernn.config as c, pathlib;"
        "root = pathlib.Path(samplernn.__file__).parent;"
        "assert str(root).startswith(str(pathlib.Path.cwd()));"
        "print(sorted(c.presets()), len(list((root / 'clips').rglob('*.flac'))))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    names = ["demo", "mehri-2tier", "mehri-3tier", "paper-2tier", "paper-3tier", "reference", "small"]
    assert result.stdout.strip() == f"{names} 36", result
