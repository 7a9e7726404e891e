#!/usr/bin/env python3
"""Captions in nearly the same words among many: time, memory, disk, and how many planted ones are found. Prints one JSON line.

    python benchmarks/near_captions.py [--captions 1000000]

Captions are made of a vocabulary with the word frequencies of a language (Zipf), under openings and endings that many share, as captioners
have them. One in 50 repeats an earlier one with a word changed, one in 200 word for word. `recall`: of the planted ones, how many stand
in a group. The peer compares all pairs of the first 1000, on which both must find the same texts.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WORDS, LENGTHS = 30_000, (40, 110)
OPENINGS = ("The image features", "The image depicts a scene of", "In this picture there is", "The photograph shows")
ENDINGS = ("The style of the image is realistic and detailed.", "Overall the scene is calm and inviting.", "The colours are warm.")
CHANGED, REPEATED = 50, 200  # one in so many
EXACT = 1000  # captions that are compared pair by pair


def captions(count: int, planted: set[int]) -> Iterator[str]:
    """Captions, one at a time; `planted` gets the positions of those that repeat an earlier one."""
    chance = np.random.default_rng(0)
    words = np.array(["".join(chr(97 + letter) for letter in chance.integers(0, 26, size)) for size in chance.integers(3, 11, WORDS)])
    odds = 1 / np.arange(1, WORDS + 1)
    total = np.cumsum(odds / odds.sum())
    kept: list[str] = []
    for place in range(count):
        kind = chance.integers(0, CHANGED * REPEATED)
        if kept and (kind % CHANGED == 0 or kind % REPEATED == 1):
            planted.add(place)
            text = kept[chance.integers(0, len(kept))]
            if kind % CHANGED == 0:
                said = text.split()
                said[chance.integers(0, len(said))] = "another"
                text = " ".join(said)
        else:
            middle = words[np.searchsorted(total, chance.random(chance.integers(*LENGTHS)))]
            text = f"{OPENINGS[place % len(OPENINGS)]} {' '.join(middle)}. {ENDINGS[place % len(ENDINGS)]}"
        if len(kept) < 1000:
            kept.append(text)
        yield text


def pairs(texts: list[str]) -> set[int]:
    """Positions of texts that are near an earlier one, by comparing all pairs."""
    from pipelines.stages.near_texts import NEAR, WORD

    runs = []
    for text in texts:
        said = WORD.findall(text.lower())
        runs.append({tuple(said[i:i + 3]) for i in range(len(said) - 2)})
    return {i for i in range(len(runs)) if any(len(runs[i] & runs[k]) >= NEAR * len(runs[i] | runs[k]) for k in range(i))}


class Watch:
    """The most that a folder and this process held, looked at ten times a second. Files that are mapped do not count as memory: the
    system takes their pages back when it needs them."""

    def __init__(self, folder: str) -> None:
        self.folder, self.disk_bytes, self.memory_kb, self.over = Path(folder), 0, 0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self.over.wait(0.1):
            held = (path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
            self.disk_bytes, self.memory_kb = max(self.disk_bytes, sum(held)), max(self.memory_kb, own_kb())


def own_kb() -> int:
    """Memory of this process without mapped files."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=50_000)
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    from pipelines.stages.near_texts import heads

    few = list(captions(EXACT, set()))
    found = heads(few)
    assert set(np.flatnonzero(found != np.arange(len(found))).tolist()) == pairs(few), "not what all pairs say"
    start = time.monotonic()
    for _ in captions(args.captions // 10, set()):
        pass
    made_s, before_kb = 10 * (time.monotonic() - start), own_kb()
    planted: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        watch, start = Watch(folder), time.monotonic()
        head = heads(captions(args.captions, planted))
        took_s = time.monotonic() - start - made_s
        watch.over.set()
    grouped = set(np.flatnonzero(np.bincount(head, minlength=len(head))[head] > 1).tolist())
    print(json.dumps({"benchmark": "near_captions", "captions": args.captions, "seconds": round(took_s, 1),
                      "microseconds_a_caption": round(1e6 * took_s / args.captions, 1), 
                      "memory_bytes_a_caption": round(1024 * (watch.memory_kb - before_kb) / args.captions),
                      "disk_bytes_a_caption": round(watch.disk_bytes / args.captions),
                      "planted": len(planted), "recall": round(len(planted & grouped) / max(1, len(planted)), 5),
                      "near": int((head != np.arange(len(head))).sum()), "machine": platform.machine(),
                      "python": platform.python_version()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
