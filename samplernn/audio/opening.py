"""Opening a file of audio, whatever it is called and however much of its header is right."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import soundfile as sf

from samplernn.audio import flac, headers, mpeg, ogg, riff
from samplernn.audio.errors import AudioError, is_of_the_system, reason, remedy_for
from samplernn.audio.pieces import Layout, Piece, Pieces, Stream

SUFFIXES = frozenset(
    {".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mp1"}
    | {".aif", ".aiff", ".aifc", ".caf", ".au", ".snd", ".voc", ".sph", ".nist", ".ircam", ".sf"}
    | {".avr", ".htk", ".iff", ".svx", ".8svx", ".mat", ".paf", ".fap", ".pvf", ".sd2", ".sds", ".wve", ".xi"}
)
"""Lower-case suffixes of the files that libsndfile reads. The content decides what a file is."""

HEADERLESS = frozenset({".raw", ".pcm", ".gsm", ".vox"})
"""Lower-case suffixes of bare samples: nothing in such a file tells its rate and format."""

UNSUPPORTED = HEADERLESS | frozenset(
    {".m4a", ".m4b", ".m4r", ".mp4", ".aac", ".alac", ".wma", ".webm", ".mka", ".ape", ".wv", ".amr", ".3gp"}
    | {".ac3", ".dsf", ".dff", ".mpc", ".spx", ".tta", ".shn"}
)
"""Lower-case suffixes of audio that libsndfile does not read; such files are reported, not ignored."""

_MAGIC = {
    "WAV": rb"(RIFF|RIFX|RF64)....WAVE|riff\x2e\x91\xcf\x11",
    "AIFF": rb"FORM....AIF[FC]",
    "8SVX": rb"FORM....(8SVX|16SV)",
    "FLAC": rb"fLaC",
    "Ogg": rb"OggS",
    "MP3": rb"ID3[\x02-\x04]|\xff[\xfa\xfb\xf2\xf3][\x10-\xef]",
    "AU": rb"\.snd\0|dns\.",
    "CAF": rb"caff\0\x01",
    "VOC": rb"Creative Voi",
    "SPHERE": rb"NIST_1A\n",
    "M4A": rb"....ftyp(M4A|M4B)",
}
"""How files of audio begin that one meets under other names."""

_LFS_POINTER = b"version https://git-lfs"


def sniff(path: Path) -> str | None:
    """What kind of audio a file holds by its first bytes, whatever its name; None if that is not known."""
    try:
        with path.open("rb") as stream:
            start = stream.read(12)
    except OSError:
        return None
    return next((kind for kind, magic in _MAGIC.items() if re.match(magic, start, re.DOTALL)), None)


PLAUSIBLE_RATES = range(100, 10_000_001)
"""Source sample rates in Hz outside of this are damaged headers."""


class _Stream(sf.SoundFile):
    """A file that is read from start to end.

    soundfile seeks to where it is after each read of a file that can seek. That is not harmless: MP3
    loses the bits that it keeps in earlier frames, and DWVW fails.
    """

    def seekable(self) -> bool:
        return False


class _PieceStream(_Stream):
    """Pieces of a file."""

    def __init__(self, path: Path, pieces: Sequence[Piece]) -> None:
        self._source = Pieces(path, pieces)
        try:
            super().__init__(self._source)
        except BaseException:
            self._source.close()
            raise

    def close(self) -> None:
        """Of a file object, soundfile leaves that to its owner."""
        super().close()
        self._source.close()


def open_stream(path: Path, stream: Stream) -> sf.SoundFile:
    """Opens one stream of a file.

    Raises:
        AudioError: it cannot be read; in the words of whoever has to act on it.
    """
    if stream.name:
        raise AudioError(path, f"holds {stream.name}, which cannot be read", _conversion(path))
    try:
        if stream.pieces is None:
            file: sf.SoundFile = _Stream(native(path))
        else:
            file = _PieceStream(path, stream.pieces)
    except (sf.SoundFileError, TypeError) as error:
        problem, transient = f"is not readable as audio{reason(error)}", is_of_the_system(error)
        remedy = _conversion(path) if sniff(path) else "remove or replace it"
        raise AudioError(path, problem, remedy, transient) from None
    except OSError as error:
        raise _not_opened(path, error) from None
    if file.format == "RAW":
        file.close()  # for an .au or .snd that has no header libsndfile assumes u-law at 8 kHz
        raise AudioError(path, "is not readable as audio (it has no header)", "remove or replace it")
    if file.samplerate not in PLAUSIBLE_RATES:
        file.close()
        raise AudioError(path, f"claims a sample rate of {file.samplerate} Hz", "export it again")
    return file


def look_into(path: Path, problems: list[AudioError]) -> Layout:
    """Finds out what a file holds; adds to `problems` what is wrong with it although it can be used.

    Raises:
        AudioError: it is no file of audio; in the words of whoever has to act on it.
    """
    if path.exists() and not path.is_file():
        raise AudioError(path, "is not a regular file", "give an audio file")
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        if not start:
            raise AudioError(path, "is empty (0 bytes)", "remove or replace it")
        if start == _LFS_POINTER:
            raise AudioError(path, "is a Git LFS pointer, not the audio itself", "run: git lfs pull")
        suffix = path.suffix.lower()
        if suffix in UNSUPPORTED:
            problems.append(_misnamed(path, suffix))
        layout = _layout(path, start) or Layout((Stream(None),))
    except OSError as error:
        raise _not_opened(path, error) from None
    if layout.problem:
        problems.append(AudioError(path, layout.problem, layout.remedy))
    return layout


def _layout(path: Path, start: bytes) -> Layout | None:
    """What a walk through a file's container finds that libsndfile would not. Raises OSError."""
    if start.startswith(b"OggS"):
        return ogg.layout(path)
    if start.startswith(b"fLaC"):
        return flac.layout(path)
    if start[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return riff.layout(path)
    if start[:4] in headers.LAYOUTS:
        return headers.LAYOUTS[start[:4]](path)
    if start.startswith(b"ID3"):
        return flac.layout(path) if flac.follows_tag(path) else mpeg.layout(path)
    if (path.suffix.lower() in (".mp3", ".mp2", ".mp1") and not sniff(path)) or sniff(path) == "MP3":
        return mpeg.layout(path)
    return None


def _not_opened(path: Path, error: OSError) -> AudioError:
    return AudioError(path, f"cannot be opened ({error.strerror})", remedy_for(error), transient=True)


def _conversion(path: Path) -> str:
    """What to do with audio that only other programs read."""
    old, new = shlex.quote(path.name), shlex.quote(f"{path.stem}.flac")
    return f"convert it to WAV or FLAC (ffmpeg -i {old} {new})"


def _misnamed(path: Path, suffix: str) -> AudioError:
    """That a file holds other audio than its name says. Raises AudioError if it may hold just that."""
    if suffix in HEADERLESS:
        problem = f"{suffix} files are bare samples without rate or format"
        raise AudioError(path, problem, "import it as raw data in an audio editor and export it as WAV")
    kind = sniff(path)
    if kind not in ("WAV", "AIFF", "FLAC", "Ogg", "MP3", "CAF"):
        raise AudioError(path, f"{suffix} files cannot be read", _conversion(path))
    return AudioError(
        path, f"holds {kind} audio, but is named {suffix}", "none needed: it is used; rename it"
    )


def native(path: Path) -> str | bytes:
    """A path for soundfile, which refuses names on Linux that are not Unicode unless they are bytes."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def was_cut(path: Path, file: sf.SoundFile, stream: Stream) -> float:
    """How often more than there is the container's own sizes promise; 1 if nothing is missing at the end.

    libsndfile corrects a header that promises too much and mentions it only in its log. Programs that
    write to a pipe put 2**31 or 2**32 less a little there (sox: 2**31 - 2**24): those files are complete.

    Returns:
        a factor of at least 1; infinity if more is missing, and nobody knows how much.
    """
    if stream.is_cut:
        return math.inf
    if file.format == "OGG" and stream.pieces is None:
        with contextlib.suppress(OSError):
            return 1.0 if ogg.has_end(path) else math.inf
    log: str = file.extra_info
    # ADPCM has a rate of bytes that programs compute in several ways; it is no size.
    sizes = re.findall(r"^(?!\s*Bytes/sec)[^:\n]*: (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    sizes += [(b, a) for a, b in re.findall(r"frame count (\d+) does not match .* of (\d+)", log)]
    factors = [
        int(promised) / max(1, int(found))
        for promised, found in sizes
        if int(promised) - int(found) > 16 and -int(promised) % 2**31 > 2**24
    ]
    return factors[-1] if factors else 1.0
