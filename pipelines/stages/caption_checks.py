"""What a caption must not be. A fault is a short code and the value that was found; a caption without a fault is kept as it is."""

from __future__ import annotations

import re
import unicodedata
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
# What pixels do not tell: names of files, addresses, cameras' counters. A sign may show an address, so few shapes are named.
UNKNOWABLE = re.compile(r"\b[\w-]+\.(jpe?g|png|webp|tiff?|bmp|gif|raw|cr2|nef|dng)\b|\b(IMG|DSC|DSCN|DSCF|PXL)_?\d{3,}\b|"
                        r"\bhttps?://|\b(file ?name|exif|image id)\b", re.IGNORECASE)
MARKUP = re.compile(r"</?[a-z][a-z0-9]*(\s[^<>]*)?/?>|<!--|&(nbsp|lt|gt|amp|quot|#\d+);|\[/?(INST|IMG)\]|<\|[\w ]+\|>", re.IGNORECASE)
ENGLISH = frozenset([
    "the", "of", "and", "is", "are", "with", "that", "it", "its", "this", "there", "which", "from", "by", "be", "while", "has",
    "have", "been", "into", "both", "at", "to", "or", "for", "as", "some", "other", "than", "each", "their", "they", "two",
    "near", "above", "behind", "across", "under", "between", "around"])
MIN_ENGLISH_SHARE = 0.10  # measured: English captions 0.18 to 0.39, six neighbours 0.00 to 0.05 (tests)
MIN_LANGUAGE_WORDS = 10  # choice: fewer words have too few small ones
MAX_FOREIGN_LETTERS = 0.1  # choice: a sign that is quoted may be in any script


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Bounds of the checks. `reasks` is how often a caption with a fault is asked for again before it is rejected."""

    min_words: int = 6  # choice: the question asks for very much detail
    max_loop: int = 3  # choice: the same phrase more often than this, back to back, is a loop
    max_repeated_share: float = 0.5  # choice: share of 4-word runs that stood in the caption before
    max_words: int = 600  # choice: 512 tokens are fewer words; a server may not keep to them
    max_chars: int = 6000  # choice: ten for each of 600 words
    allow_cut: bool = False  # whether a caption that hit the token limit is kept
    plain_english: bool = True  # false keeps every language, odd characters and markup
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
    """The first fault of a caption, or None.

    Codes: too_long, empty, control_characters, markup, repetition, cut_off, refusal, unknowable, too_short, wrong_language.
    """
    if len(text) > settings.max_chars:  # before anything that takes time
        return Fault("too_long", f"{len(text)} characters, at most {settings.max_chars} expected: {text[:SHOWN_CHARS]!r}")
    words = re.findall(r"[\w'-]+", text.lower())
    shown = text[:SHOWN_CHARS]
    if not words:
        return Fault("empty", repr(shown))
    if len(words) > settings.max_words:
        return Fault("too_long", f"{len(words)} words, at most {settings.max_words} expected: {shown!r}")
    odd = _odd_characters(text) if settings.plain_english else _halves(text)
    if odd:
        return odd
    loop, share = longest_loop(words), repeated_share(words)
    if loop > settings.max_loop or share > settings.max_repeated_share:
        return Fault("repetition", f"{loop} times in a row, {share:.0%} said before: {shown}")
    if finish_reason == "length" and not settings.allow_cut:
        return Fault("cut_off", f"{len(words)} words without an end: …{text[-SHOWN_CHARS:]}")
    if any(pattern.search(text) for pattern in REFUSALS):
        return Fault("refusal", shown)
    if known := UNKNOWABLE.search(text):
        return Fault("unknowable", f"{known.group(0)!r} in: {shown}")
    if len(words) < settings.min_words:
        return Fault("too_short", f"{len(words)} words, at least {settings.min_words} expected: {shown}")
    return _foreign(text, words) if settings.plain_english else None


def _odd_characters(text: str) -> Fault | None:
    """Control characters, bytes that were no text, and markup."""
    control = [one for one in text if one == "\ufffd" or (unicodedata.category(one) in ("Cc", "Cs", "Co", "Cn") and one not in "\n\t")]
    if control:
        return Fault("control_characters", f"{len(control)} of them, the first {control[0]!r}, in {text[:SHOWN_CHARS]!r}")
    marks = MARKUP.search(text)
    return Fault("markup", f"{marks.group(0)[:40]!r} in: {text[:SHOWN_CHARS]!r}") if marks else None


def _halves(text: str) -> Fault | None:
    """Halves of characters (surrogates), which a server's JSON may hold and no table can: faults in every language."""
    halves = [one for one in text if unicodedata.category(one) == "Cs"]
    return Fault("control_characters", f"{len(halves)} of them, the first {halves[0]!r}, in {text[:SHOWN_CHARS]!r}") if halves else None


def _foreign(text: str, words: list[str]) -> Fault | None:
    """Another script, or hardly any of English's small words."""
    letters = [one for one in text if one.isalpha()]
    foreign = sum(1 for one in letters if not unicodedata.name(one, "").startswith("LATIN")) / max(1, len(letters))
    if foreign > MAX_FOREIGN_LETTERS:
        return Fault("wrong_language", f"{foreign:.0%} of its letters are not Latin: {text[:SHOWN_CHARS]}")
    english = english_share(words)
    if len(words) >= MIN_LANGUAGE_WORDS and english < MIN_ENGLISH_SHARE:
        return Fault("wrong_language", f"{english:.0%} of its words are small English ones: {text[:SHOWN_CHARS]}")
    return None


def english_share(words: list[str]) -> float:
    """The share of words (lower case) that are small words of English, and of none of its neighbours, 0 to 1."""
    return sum(1 for word in words if word in ENGLISH) / max(1, len(words))


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
