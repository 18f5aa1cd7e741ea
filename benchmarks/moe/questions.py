"""Questions from WordNet's data files and from Debian's package lists: text, four options, the answer."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Attributes:
        text: what is asked about.
        options: four of them.
        answer: which is right.
    """

    text: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class _Entry:
    name: str
    text: str
    family: str
    file: str


def wordnet_questions(data: str, count: int, seed: int) -> list[Question]:
    """Gloss -> lemma; distractors share the hypernym, or else the lexicographer's file (wndb(5WN))."""
    entries = []
    for line in data.splitlines():
        if line.startswith("  "):
            continue
        fields, _, gloss = line.partition("|")
        parts = fields.split()
        words = int(parts[3], 16)
        pointers = parts[4 + 2 * words :]
        parents = [pointers[i + 1] for i in range(1, len(pointers) - 3, 4) if pointers[i] in ("@", "@i", "&")]
        text = re.sub(r';?\s*"[^"]*"', "", gloss).strip(" ;")
        name = re.sub(r"\(\w+\)$", "", parts[4]).replace("_", " ")
        entries.append(_Entry(name, text, parents[0] if parents else "", parts[1]))
    return _ask(entries, count, seed)


def package_questions(available: str, count: int, seed: int = 3) -> list[Question]:
    """Short description -> package; distractors are of the same section."""
    entries = []
    for block in available.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Section|Description): (.*)$", block, re.MULTILINE))
        name, text = fields.get("Package", ""), fields.get("Description", "")
        if name and text and not re.match(r"lib|.*-(doc|dev|dbg|dbgsym|data|common)$", name):
            entries.append(_Entry(name, text, "", fields.get("Section", "")))
    return _ask(entries, count, seed)


def _ask(entries: list[_Entry], count: int, seed: int) -> list[Question]:
    generator = random.Random(seed)
    by_family, by_file = defaultdict(list), defaultdict(list)
    for entry in entries:
        by_family[entry.family].append(entry.name)
        by_file[entry.file].append(entry.name)
    generator.shuffle(entries)
    questions, asked = [], set()
    for entry in entries:
        words = {w for w in re.split(r"\W+", entry.name.lower()) if len(w) > 3}
        text = entry.text.lower()
        if len(text.split()) < 3 or any(word in text for word in words):
            continue  # the answer is named in the question
        if text in asked:
            continue  # or splits would share questions
        asked.add(text)
        near = [n for n in by_family[entry.family] if n != entry.name] if entry.family else []
        pool = near if len(set(near)) >= 3 else [n for n in by_file[entry.file] if n != entry.name]
        others: list[str] = []
        for name in generator.sample(pool, min(len(pool), 12)):
            if name.lower() != entry.name.lower() and name not in others and len(others) < 3:
                others.append(name)
        if len(others) < 3:
            continue
        answer = generator.randrange(4)
        others.insert(answer, entry.name)
        questions.append(Question(entry.text, tuple(others), answer))
        if len(questions) == count:
            return questions
    raise ValueError(f"{count} questions were asked for; the text gives {len(questions)}")
