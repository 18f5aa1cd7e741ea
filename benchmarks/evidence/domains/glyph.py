"""Glyph: characters of 20 scripts, each in 12 Noto styles; whole scripts belong to one split."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from archives import NOTO_CORE, NOTO_EXTRA, read_members
from fontTools.ttLib import TTFont
from pictures import Domain, Picture

from domains.drawing import at_size, drawn

CHARACTERS = 27  # of a script

STYLES = tuple(f"{family}-{weight}" for family in ("Sans", "Serif") for weight in (
    "Thin", "Light", "Regular", "Medium", "Bold", "Black"
))  # fmt: skip

# Letters of the three scripts that share forms are told apart by hand: no two of them look alike.
_LATIN = "ABCDEFGHJKLMNPQRSTVXYZaegßæ"
_GREEK = "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπστφψω"
_CYRILLIC = "БДЖИЛУЦЧШЩЪЫЭЮЯЂЊЉѢѪҖҨӠбфзҼ"

# Where the letters of the others start in Unicode, and the step; letters with a decomposition are passed over.
_BLOCKS = {
    "armenian": ("Armenian", 0x0561, 1),
    "bengali": ("Bengali", 0x0995, 1),
    "devanagari": ("Devanagari", 0x0915, 1),
    "ethiopic": ("Ethiopic", 0x1200, 8),  # one of each row of vowels
    "georgian": ("Georgian", 0x10D0, 1),
    "gujarati": ("Gujarati", 0x0A95, 1),
    "gurmukhi": ("Gurmukhi", 0x0A15, 1),
    "hebrew": ("Hebrew", 0x05D0, 1),
    "kannada": ("Kannada", 0x0C95, 1),
    "khmer": ("Khmer", 0x1780, 1),
    "lao": ("Lao", 0x0E81, 1),
    "malayalam": ("Malayalam", 0x0D15, 1),
    "myanmar": ("Myanmar", 0x1000, 1),
    "sinhala": ("Sinhala", 0x0D9A, 1),
    "tamil": ("Tamil", 0x0B85, 1),
    "telugu": ("Telugu", 0x0C15, 1),
    "thai": ("Thai", 0x0E01, 1),
}
_BY_HAND = {"latin": _LATIN, "greek": _GREEK, "cyrillic": _CYRILLIC}
_FONT = re.compile(r".*/Noto(Sans|Serif)([A-Z][a-z]+)?-(Thin|Light|Regular|Medium|Bold|Black)\.ttf")


def _pictures(paths: Mapping[str, Path], names: Sequence[str]) -> Iterator[Picture]:
    suffixes = {"" if script in _BY_HAND else _BLOCKS[script][0] for script in names}
    fonts: dict[tuple[str, str], bytes] = {}
    for path, package in ((paths["core"], NOTO_CORE), (paths["extra"], NOTO_EXTRA)):
        for name, content in read_members(path, lambda n: _wanted(n, suffixes), package.remedy).items():
            match = _FONT.fullmatch(name)
            assert match is not None  # _wanted has asked for it
            fonts[match[2] or "", f"{match[1]}-{match[3]}"] = content
    for script in names:
        suffix = "" if script in _BY_HAND else _BLOCKS[script][0]
        if missing := [style for style in STYLES if (suffix, style) not in fonts]:
            raise ValueError(f"{paths['core']} and {paths['extra']} lack Noto{suffix} in {', '.join(missing)}")
        known = set.intersection(*(set(TTFont(io.BytesIO(fonts[suffix, style])).getBestCmap()) for style in STYLES))
        letters = [letter for letter in _letters(script) if ord(letter) in known][:CHARACTERS]
        if len(letters) < CHARACTERS:
            raise ValueError(f"script {script} has {len(letters)} letters in all of {STYLES}; expected {CHARACTERS}")
        for style in STYLES:
            font = at_size(fonts[suffix, style])
            for letter in letters:
                if (pixels := drawn(letter, font)) is None:
                    raise ValueError(f"Noto{suffix} {style} draws nothing for {letter!r}; is {paths['core']} whole?")
                values = (_named(script, letter), script, style)
                yield Picture(f"{script}/{ord(letter):04x}/{style}", values, pixels)


def _wanted(name: str, suffixes: set[str]) -> bool:
    match = _FONT.fullmatch(name)
    return match is not None and (match[2] or "") in suffixes


def _letters(script: str) -> Sequence[str]:
    if script in _BY_HAND:
        return _BY_HAND[script]
    _, start, step = _BLOCKS[script]
    candidates = map(chr, range(start, start + 128 * step if step > 1 else start + 64, step))
    return [c for c in candidates if unicodedata.category(c) in ("Lo", "Ll") and not unicodedata.decomposition(c)]


def _named(script: str, letter: str) -> str:
    """For example ``"bengali:letter-ka"``."""
    words = unicodedata.name(letter).lower().split()
    return f"{script}:{'-'.join(words[1:])}"


GLYPH_DOMAIN = Domain(
    "glyph",
    ("class", "script", "style"),
    {"core": NOTO_CORE, "extra": NOTO_EXTRA},
    _pictures,
    10,
    "27 characters of each of 20 scripts in 12 styles of Noto fonts; a script belongs to one split",
)
