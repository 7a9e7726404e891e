"""Writes many captions at a time: a row that ends leaves the batch at once, and the next picture takes its place.

transformers 5.23 batches continuously for text alone (its manager passes no pixels), hence this loop over the model's own forward.
A row that joins puts its keys and values at the right end of the cache, with a mask over the empty places to their left: positions
are turned into keys before they are cached, so a row's place in the cache means nothing.

Legend: B rows, L places of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.stages.llava import Decoding

JOIN_SHARE = 8  # choice: new rows join when an eighth of the places is free; a pass over pictures costs as much as tens of tokens


@dataclass
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
        self.passes = 0

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, list[int], bool]]:
        """(job, its tokens without the end token, whether it ended by itself), as they end; a job is drawn when there is room."""
        import torch

        rows, more = _Rows(), True
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
                rows, self.places = _Rows(), max(1, self.places // 2)
                torch.cuda.empty_cache()
                continue
            yield from ended

    def _join(self, rows: _Rows, fresh: list[Job]) -> None:
        """Read prompts and pictures, choose each row's first token, and set the rows beside those under way."""
        import torch
        from transformers import DynamicCache

        lengths = {job.inputs["input_ids"].shape[1] for job in fresh}
        assert len(lengths) == 1, f"prompts of one template with pictures of one size are equally long, found {sorted(lengths)}"
        inputs = {name: torch.cat([job.inputs[name] for job in fresh]) for name in fresh[0].inputs}
        self.passes += 1
        cache = DynamicCache(config=self.model.config.get_text_config())
        made = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        rows.add(fresh, made.past_key_values, inputs["attention_mask"], inputs["attention_mask"].sum(-1, keepdim=True))
        self._choose(fresh, made.logits[:, -1])

    def _step(self, rows: _Rows) -> None:
        import torch

        device = rows.mask_BL.device
        last_B1 = torch.tensor([[job.tokens[-1]] for job in rows.jobs], device=device)
        rows.mask_BL = torch.cat([rows.mask_BL, rows.mask_BL.new_ones(len(rows.jobs), 1)], 1)
        self.passes += 1
        made = self.model(input_ids=last_B1, attention_mask=rows.mask_BL, position_ids=rows.position_B1, past_key_values=rows.cache,
                          use_cache=True, logits_to_keep=1)
        rows.position_B1 = rows.position_B1 + 1
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
        for job in rows.jobs:
            stopped = job.tokens[-1] in self.ends
            if stopped or len(job.tokens) >= self.max_new_tokens:
                ended.append((job, job.tokens[:-1] if stopped else job.tokens, stopped))
        if ended:
            gone = {id(job) for job, _, _ in ended}
            rows.keep([place for place, job in enumerate(rows.jobs) if id(job) not in gone])
        return ended


class _Rows:
    """The rows under way: their keys and values, which places of the cache they use, and the position of their next token."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.cache: Any = None  # kept from step to step: to build one anew copies it
        self.mask_BL: Any = None
        self.position_B1: Any = None

    def add(self, jobs: list[Job], cache: Any, mask_BL: Any, position_B1: Any) -> None:
        import torch

        if self.jobs:
            length = max(self.mask_BL.shape[1], mask_BL.shape[1])

            def beside(old: Any, new: Any) -> Any:
                return torch.cat([_left(old, length, -2), _left(new, length, -2)])

            for old, new in zip(self.cache.layers, cache.layers, strict=True):
                new.keys, new.values = beside(old.keys, new.keys), beside(old.values, new.values)
            mask_BL = torch.cat([_left(self.mask_BL, length, -1), _left(mask_BL, length, -1)])
            position_B1 = torch.cat([self.position_B1, position_B1])
        self.jobs, self.cache, self.mask_BL, self.position_B1 = [*self.jobs, *jobs], cache, mask_BL, position_B1

    def keep(self, places: list[int]) -> None:
        """Only these rows, and of the cache only what one of them uses."""
        import torch

        self.jobs = [self.jobs[place] for place in places]
        if not places:
            self.cache, self.mask_BL, self.position_B1 = None, None, None
            return
        index_B = torch.tensor(places, device=self.mask_BL.device)
        mask_BL = self.mask_BL[index_B]
        first = int(mask_BL.any(0).int().argmax())
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[index_B][..., first:, :], layer.values[index_B][..., first:, :]
        self.mask_BL, self.position_B1 = mask_BL[:, first:], self.position_B1[index_B]


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


def _left(values: Any, length: int, dim: int) -> Any:
    """Zeros to the left, up to a length along `dim` (-1 or -2)."""
    from torch.nn.functional import pad

    lacking = length - values.shape[dim]
    return pad(values, (lacking, 0) if dim == -1 else (0, 0, lacking, 0)) if lacking else values


def _anew(job: Job) -> Job:
    """The job from its beginning."""
    return Job(ticket=job.ticket, inputs=job.inputs, decoding=job.decoding, seed=job.seed)
