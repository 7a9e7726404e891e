"""What a caption must not be. A fault is a short code and the value that was found; a caption without a fault is kept as it is."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

NGRAM_WORDS = 4  # choice: shorter runs of words come back in honest prose
LOOP_PERIOD_WORDS = 24  # choice: the longest phrase that is looked for back to back
SHOWN_CHARS = 160  # choice: how much of a faulty caption the ledger keeps

# A captioner that talks of itself or of a missing picture has not described one.
REFUSALS = tuple(re.compile(pattern, re.IGNORECASE) for pattern in (
    r"\bas an? (ai|artificial intelligence|language model)\b",
    r"^\s*(i'?m|i am) (sorry|unable|afraid)\b",
    r"\bi (cannot|can'?t|am unable to|am not able to) (see|view|access|assist|help|describe|identify|provide)\b",
    r"\b(no|without an?|(did not|didn'?t) provide an?) (image|picture|photo)( (was|is|has been))? (provided|attached|given|uploaded)\b",
    r"\bplease (provide|upload|attach|share) (an?|the|your)\b.*\b(image|picture|photo)\b",
    r"^\s*(user|assistant|system)\s*:",
))


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Bounds of the checks. `reasks` is how often a caption with a fault is asked for again before it is rejected."""

    min_words: int = 6  # choice: the question asks for very much detail
    max_loop: int = 3  # choice: the same phrase more often than this, back to back, is a loop
    max_repeated_share: float = 0.5  # choice: share of 4-word runs that stood in the caption before
    allow_cut: bool = False  # whether a caption that hit the token limit is kept
    reasks: int = 1

    def __post_init__(self) -> None:
        if self.reasks < 0:
            raise ValueError(f"checks.reasks is {self.reasks}, expected 0 or more")


@dataclass(frozen=True)
class Fault:
    """Why a caption is not kept: `reason` is a code of the ledger, `detail` what was found."""

    reason: str
    detail: str


def find_fault(text: str, finish_reason: str, settings: CheckSettings) -> Fault | None:
    """The first fault of a caption, or None. Codes: empty, cut_off, refusal, repetition, too_short."""
    words = re.findall(r"[\w'-]+", text.lower())
    shown = text[:SHOWN_CHARS]
    if not words:
        return Fault("empty", repr(shown))
    loop, share = longest_loop(words), repeated_share(words)
    if loop > settings.max_loop or share > settings.max_repeated_share:
        return Fault("repetition", f"{loop} times in a row, {share:.0%} said before: {shown}")
    if finish_reason == "length" and not settings.allow_cut:
        return Fault("cut_off", f"{len(words)} words without an end: …{text[-SHOWN_CHARS:]}")
    if any(pattern.search(text) for pattern in REFUSALS):
        return Fault("refusal", shown)
    if len(words) < settings.min_words:
        return Fault("too_short", f"{len(words)} words, at least {settings.min_words} expected: {shown}")
    return None


def longest_loop(words: list[str]) -> int:
    """How often a phrase of up to 24 words stands back to back, at most."""
    most = 1
    for period in range(1, min(LOOP_PERIOD_WORDS, len(words) // 2) + 1):
        run = 0
        for i in range(period, len(words)):
            run = run + 1 if words[i] == words[i - period] else 0
            most = max(most, 1 + run // period)
    return most


def repeated_share(words: list[str]) -> float:
    """The share of 4-word runs that stood in the text before, 0 to 1."""
    runs = Counter(tuple(words[i:i + NGRAM_WORDS]) for i in range(len(words) - NGRAM_WORDS + 1))
    total = sum(runs.values())
    return 1.0 - len(runs) / total if total else 0.0
