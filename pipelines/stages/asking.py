"""How a captioner is asked: the paper's question, how long it may answer, and how words are chosen."""

from __future__ import annotations

from dataclasses import dataclass

QUESTION = "Describe this image and its style in a very detailed manner."  # App. A.2 and released code
MAX_NEW_TOKENS = 512  # released code
IMAGE_MARK = "<image>"  # where a picture goes in LLaVA's conversation


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How words are chosen: greedily at temperature 0, otherwise by nucleus sampling (Holtzman et al. 2020)."""

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"decoding: temperature {self.temperature}, top_p {self.top_p}: expected temperature >= 0 and 0 < top_p <= 1")

    def describe(self, seed: int) -> str:
        """For the row: what is needed to decode in the same way again."""
        return f"temperature {self.temperature}, top_p {self.top_p}, seed {seed}" if self.temperature else "greedy"


GREEDY = Decoding()
REASK = Decoding(temperature=0.7, top_p=0.9)  # choice: greedy decoding would only repeat its fault
RELEASED_SAMPLING = Decoding(temperature=0.2, top_p=0.7)  # released code
