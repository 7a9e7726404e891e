"""Writes many captions at a time: a row that ends leaves the batch at once, and the next picture takes its place.

transformers 5.23 batches continuously for text alone (its manager passes no pixels), hence this loop over the model's own forward.
A row that joins puts its keys and values at the right end of the cache (llava_cache), with a mask over the empty columns to their left:
positions are turned into keys before they are cached, so a row's place in the cache means nothing.

Legend: B rows, L columns of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.stages.asking import Decoding

JOIN_SHARE = 8  # choice: new rows join when an eighth of the places is free; a pass over pictures costs as much as tens of tokens


@dataclass(eq=False)
class Job:
    """One picture with its prompt, as the model's inputs (one row). `ticket` is the caller's."""

    ticket: Any
    inputs: dict[str, Any]
    decoding: Decoding
    seed: int
    tokens: list[int] = field(default_factory=list)
    generator: Any = None


class RollingDecoder:
    """`run` decodes jobs, at most `places` at a time; out of memory halves the places, and they stay so."""

    def __init__(self, model: Any, ends: list[int], max_new_tokens: int, places: int) -> None:
        self.model, self.ends, self.max_new_tokens, self.places = model, frozenset(ends), max_new_tokens, places
        self.window: int | None = getattr(model.config.get_text_config(), "sliding_window", None)
        self.passes = 0

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, list[int], bool]]:
        """(job, its tokens without the end token, whether it ended by itself), as they end; a job is drawn when there is room."""
        import torch

        rows, more = _Rows(self.places), True
        back: list[Job] = []
        while True:
            fresh: list[Job] = []
            free = self.places - len(rows.jobs)
            if not rows.jobs or free >= max(1, self.places // JOIN_SHARE):
                while len(fresh) < free and (back or more):
                    job = back.pop(0) if back else next(jobs, None)
                    more = more and job is not None
                    if job is not None:
                        fresh.append(job)
            if not fresh and not rows.jobs:
                return
            try:
                with torch.inference_mode():
                    if fresh:
                        self._join(rows, fresh)
                    else:
                        self._step(rows)
                    ended = self._retire(rows)
            except torch.OutOfMemoryError as error:
                if self.places == 1:
                    raise
                error.__traceback__ = None  # its frames hold the tensors that have to go
                back = [_anew(job) for job in [*rows.jobs, *[job for job in fresh if job not in rows.jobs]]] + back
                self.places = max(1, self.places // 2)
                rows = _Rows(self.places)
                torch.cuda.empty_cache()
                continue
            yield from ended

    def _join(self, rows: _Rows, fresh: list[Job]) -> None:
        """Read prompts and pictures, choose each row's first token, and set the rows beside those under way."""
        from transformers import DynamicCache

        inputs, lengths = stacked([job.inputs for job in fresh])
        self.passes += 1
        read = DynamicCache()  # of the whole prompt, also where the model looks back through a window
        made = self.model(**inputs, past_key_values=read, use_cache=True, logits_to_keep=1)
        rows.jobs += fresh
        rows.positions += lengths
        rows.cache.add(read, lengths)
        self._choose(fresh, made.logits[:, -1])

    def _step(self, rows: _Rows) -> None:
        import torch

        rows.cache.make_room()
        mask_B11L = rows.cache.mask(self.window)
        last_B1 = torch.tensor([job.tokens[-1:] for job in rows.jobs], device=mask_B11L.device)
        position_B1 = torch.tensor(rows.positions, device=mask_B11L.device)[:, None]
        self.passes += 1
        made = self.model(input_ids=last_B1, attention_mask=mask_B11L, position_ids=position_B1, past_key_values=rows.cache,
                          use_cache=True, logits_to_keep=1)
        rows.advance()
        self._choose(rows.jobs, made.logits[:, -1])

    def _choose(self, jobs: list[Job], logits_BV: Any) -> None:
        import torch

        greedy_B = logits_BV.float().argmax(-1).tolist()
        for job, token in zip(jobs, greedy_B, strict=True):
            job.tokens.append(token)
        drawn = [place for place, job in enumerate(jobs) if job.decoding.temperature]
        if not drawn:
            return
        for place in drawn:
            job = jobs[place]
            job.generator = job.generator or torch.Generator().manual_seed(job.seed)
        drawn_B1 = torch.stack([torch.rand(1, generator=jobs[place].generator) for place in drawn])
        heat_B1 = torch.tensor([[jobs[place].decoding.temperature] for place in drawn])
        top_B1 = torch.tensor([[jobs[place].decoding.top_p] for place in drawn])
        for place, token in zip(drawn, nucleus(logits_BV[drawn], heat_B1, top_B1, drawn_B1), strict=True):
            jobs[place].tokens[-1] = token

    def _retire(self, rows: _Rows) -> list[tuple[Job, list[int], bool]]:
        ended = []
        for place in reversed(range(len(rows.jobs))):  # from the end: the last row takes the place of one that leaves
            job = rows.jobs[place]
            stopped = job.tokens[-1] in self.ends
            if stopped or len(job.tokens) >= self.max_new_tokens:
                ended.append((job, job.tokens[:-1] if stopped else job.tokens, stopped))
                rows.remove(place)
        return ended


class _Rows:
    """The rows under way: their cache, and the position of each one's next token."""

    def __init__(self, places: int) -> None:
        from pipelines.stages.llava_cache import RowsCache

        self.jobs: list[Job] = []
        self.positions: list[int] = []
        self.cache = RowsCache(places)

    def advance(self) -> None:
        """Each row has one token more."""
        self.cache.advance()
        self.positions = [one + 1 for one in self.positions]

    def remove(self, place: int) -> None:
        """Take a row out; the last one comes to its place."""
        self.cache.remove(place)
        self.jobs[place], self.positions[place] = self.jobs[-1], self.positions[-1]
        self.jobs.pop()
        self.positions.pop()


def stacked(each: list[dict[str, Any]]) -> tuple[dict[str, Any], list[int]]:
    """(inputs of one row each as those of a batch, with position ids; the length of each prompt).

    Prompts of pictures in any resolution differ in length and in tiles: zeros to the left of the text, and after the tiles, which the
    model leaves out by the pictures' sizes.
    """
    import torch

    lengths = [one["input_ids"].shape[1] for one in each]
    texts = ("input_ids", "attention_mask")
    batch = {name: torch.cat([_padded(one[name], max(lengths), left=True) for one in each]) for name in texts}
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    for name in each[0].keys() - set(texts):
        parts = [one[name] for one in each]
        tiles = max(part.shape[1] for part in parts) if parts[0].ndim == 5 else None
        batch[name] = torch.cat([_padded(part, tiles) if tiles else part for part in parts])
    return batch, lengths


def _padded(values: Any, length: int, left: bool = False) -> Any:
    """Zeros up to a length of the second dimension."""
    lacking = length - values.shape[1]
    if not lacking:
        return values
    zeros = values.new_zeros(values.shape[0], lacking, *values.shape[2:])
    import torch

    return torch.cat([zeros, values] if left else [values, zeros], 1)


def nucleus(logits_BV: Any, temperature_B1: Any, top_p_B1: Any, drawn_B1: Any) -> list[int]:
    """A token a row by nucleus sampling (Holtzman et al. 2020), from one uniform number (0 to 1) a row and the cumulative distribution.

    What is drawn for a row does not depend on the others, and no global seed is touched.
    """
    import torch

    device = logits_BV.device
    probabilities_BV, order_BV = torch.softmax(logits_BV.float() / temperature_B1.to(device), -1).sort(dim=-1, descending=True, stable=True)
    total_BV = probabilities_BV.cumsum(-1)
    kept_BV = (total_BV - probabilities_BV) < top_p_B1.to(device)
    mass_B1 = (probabilities_BV * kept_BV).sum(-1, keepdim=True)
    place_B1 = torch.minimum((total_BV <= drawn_B1.to(device) * mass_B1).sum(-1, keepdim=True), kept_BV.sum(-1, keepdim=True) - 1)
    return [int(token) for token in order_BV.gather(1, place_B1)[:, 0].tolist()]


def _anew(job: Job) -> Job:
    """The job from its beginning."""
    return Job(ticket=job.ticket, inputs=job.inputs, decoding=job.decoding, seed=job.seed)
