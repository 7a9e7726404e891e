"""Which photographs are never trained on: a rule on the image's id, so that training and scoring agree without a list.

Scores are only worth something on pictures that no weights have seen. Training (the prior's too) leaves out the rows for which
`is_held_out` is true (for a derived image, such as a negative sample: of its `parent_image_id`), scoring takes those rows alone.
"""

from __future__ import annotations

import hashlib

HELD_OUT_EVERY = 4  # choice: one photograph in four; on a corpus of twenty enough are left to learn from and several to score
SALT = "held out 19"  # choice: of the photographs in examples/ it holds out a portrait, a still life, flowers and fine texture


def is_held_out(image_id: str, every: int = HELD_OUT_EVERY) -> bool:
    """Whether the image belongs to the held-out part: about one in `every`, decided by its id alone; 0 holds out none.

    The id is hashed once more, so that the choice is not tied to any other use of its digits. Raises ValueError below 0.
    """
    if every < 0:
        raise ValueError(f"every is {every}, expected 0 (hold out none) or how many images there are to each one held out")
    if every == 0:
        return False
    return int.from_bytes(hashlib.sha256(f"{SALT}: {image_id}".encode()).digest()[:8]) % every == 0
