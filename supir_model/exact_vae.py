"""Encoder and decoder of the autoencoder by tiles, equal to the untiled ones; ours, not in the released code (docs/numerics.md).

A convolution needs a tile and a rim around it; a group norm needs the whole image, and so does the attention of the middle
block. So the net runs in sweeps over the image, one a group norm: a sweep computes tile by tile what the norm reads and adds up
the mean and the variance of the whole image. It starts from the last activation that is held whole. One is held in front of a
residual block where it fits `hold_bytes` together with the one before, and on the latent's grid always; elsewhere the next
sweep computes it again.

Memory beyond input and output: a few activations of one tile and its rim, `hold_bytes`, and of the latent's grid, for SDXL in
fp32, 32 bytes a pixel of the image for each held activation: two, and three (features, keys, values) during global attention.
Time: convolutions in front of a norm run twice where all is held, and as often as norms follow where nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLD_BYTES = 2**30  # choice: at 1024 x 1024 pixels SDXL's decoder then holds all but one activation
QUERIES = 4096  # choice: attention reads all keys for this many positions at once

Attention = Literal["global", "tile"]
"""Whether a position of the middle block attends to the whole image, as untiled, or to its tile alone."""


class Span(NamedTuple):
    """Part of one axis, [start, stop)."""

    start: int
    stop: int


class Box(NamedTuple):
    """Part of an activation."""

    rows: Span
    columns: Span

    def crop(self, x_BCHW: Tensor, origin: Box | None = None) -> Tensor:
        """This part of `x_BCHW`, which is the part `origin` (None: the whole)."""
        top, left = (origin.rows.start, origin.columns.start) if origin else (0, 0)
        return x_BCHW[:, :, self.rows.start - top : self.rows.stop - top, self.columns.start - left : self.columns.stop - left]


class Convolution(NamedTuple):
    """3 x 3 with a rim of zeros; `stride` 2 has zeros at the far ends alone, as the autoencoder's downsampler."""

    conv: nn.Conv2d

    def length(self, length: int) -> int:
        return length // self.conv.stride[0]

    def reads(self, span: Span) -> Span:
        """May reach beyond the image, where zeros are."""
        return Span(2 * span.start, 2 * span.stop + 1) if self.conv.stride[0] == 2 else Span(span.start - 1, span.stop + 1)

    def run(self, x_BCHW: Tensor, source: Box, target: Box) -> Tensor:
        (top, bottom), (left, right) = (self.reads(span) for span in target)
        (rows, columns) = source
        padding = (columns.start - left, right - columns.stop, rows.start - top, bottom - rows.stop)
        return F.conv2d(F.pad(x_BCHW, padding), self.conv.weight, self.conv.bias, self.conv.stride)


class Double(NamedTuple):
    """Every pixel four times, in front of an upsampler's convolution."""

    def length(self, length: int) -> int:
        return 2 * length

    def reads(self, span: Span) -> Span:
        return Span(span.start // 2, -(-span.stop // 2))

    def run(self, x_BCHW: Tensor, source: Box, target: Box) -> Tensor:
        origin = Box(*(Span(2 * span.start, 2 * span.stop) for span in source))
        return target.crop(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"), origin)


class Norm(NamedTuple):
    """Group norm, and what follows it."""

    norm: nn.GroupNorm
    silu: bool = True


class Keep(NamedTuple):
    """A residual block begins: its input is kept for `Add`."""


class Add(NamedTuple):
    """A residual block ends."""

    shortcut: nn.Module | None


Step = Convolution | Double | Norm | Keep | Add


@dataclass(kw_only=True)
class Moments:
    """Mean and variance by image and group, of tiles added one after the other, in double (Chan et al. 1979)."""

    count: int = 0
    mean_BG: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares_BG: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x_BCHW: Tensor, groups: int) -> None:
        grouped = x_BCHW.float().reshape(len(x_BCHW), groups, -1)
        count = grouped.shape[-1]
        var_BG, mean_BG = (m.cpu().double() for m in torch.var_mean(grouped, dim=-1, correction=0))
        total, distance_BG = self.count + count, mean_BG - self.mean_BG
        self.squares_BG = self.squares_BG + var_BG * count + distance_BG**2 * (self.count * count / total)
        self.mean_BG = self.mean_BG + distance_BG * (count / total)
        self.count = total

    def normalise(self, norm: nn.GroupNorm, x_BCHW: Tensor) -> Tensor:
        """`norm` of a tile by the moments of the whole; computed in fp32 as torch does."""
        spread = norm.num_channels // norm.num_groups
        rsqrt_BG = (self.squares_BG / self.count + norm.eps).rsqrt()
        mean, rsqrt = (
            m.float().to(x_BCHW.device).repeat_interleave(spread, dim=1)[..., None, None] for m in (self.mean_BG, rsqrt_BG)
        )
        weight, bias = (p.float()[:, None, None] for p in (norm.weight, norm.bias))
        return ((x_BCHW.float() - mean) * (rsqrt * weight) + bias).to(x_BCHW.dtype)


def exact_encoder(
    encoder: Any, x_BCHW: Tensor, tile_px: int, *, attention: Attention = "global", hold_bytes: int = HOLD_BYTES, park: str | None = None
) -> Tensor:
    """`encoder(x_BCHW)` by tiles of `tile_px` pixels a side; the whole at once where the image is not larger. Without autograd.

    Held activations lie on `park`, by default where the image is.
    """
    before: list[Step] = [Convolution(encoder.conv_in)]
    for block in encoder.down_blocks:
        before += _resnets(block.resnets)
        before += [Convolution(downsampler.conv) for downsampler in block.downsamplers or ()]
    return _by_tiles(encoder, before, [], x_BCHW, tile_px, attention, hold_bytes, park)


def exact_decoder(
    decoder: Any, z_BCHW: Tensor, tile: int, *, attention: Attention = "global", hold_bytes: int = HOLD_BYTES, park: str | None = None
) -> Tensor:
    """`decoder(z_BCHW)` by tiles of `tile` latent pixels a side; otherwise as `exact_encoder`."""
    after: list[Step] = []
    for block in decoder.up_blocks:
        after += _resnets(block.resnets)
        for upsampler in block.upsamplers or ():
            after += [Double(), Convolution(upsampler.conv)]
    return _by_tiles(decoder, [Convolution(decoder.conv_in)], after, z_BCHW, tile, attention, hold_bytes, park)


@torch.no_grad()
def _by_tiles(
    net: Any, before: list[Step], after: list[Step], x_BCHW: Tensor, side: int, attention: Attention, hold_bytes: int, park: str | None
) -> Tensor:
    """The net: `before`, the middle block, `after`, the head."""
    if side < 1:
        raise ValueError(f"a tile of {side} latent pixels: expected 1 or more; choose a larger vae_tile_px")
    if max(x_BCHW.shape[-2:]) <= side:
        whole: Tensor = net(x_BCHW)
        return whole
    first, second = net.mid_block.resnets
    attend = net.mid_block.attentions[0]
    before = [*before, *_resnet(first), Norm(attend.group_norm, silu=False)]
    after = [*_resnet(second), *after, Norm(net.conv_norm_out), Convolution(net.conv_out)]
    grid = _smallest(before, x_BCHW)
    sweeps = Sweeps(before, x_BCHW, side=side, device=x_BCHW.device, park=park, hold_bytes=hold_bytes, grid=grid)
    moments = sweeps.measure()
    held_BCHW, side = sweeps.held_BCHW, sweeps.sides[-1]
    del sweeps
    _attend(attend, moments, held_BCHW, x_BCHW.device, side if attention == "tile" else None)
    sweeps = Sweeps(after, held_BCHW, side=side, device=x_BCHW.device, park=park, hold_bytes=hold_bytes, grid=grid)
    sweeps.measure()
    return sweeps.finish()


class Sweeps:
    """The state of a chain of steps on one batch: what is held, from which step on, and the moments of the norms so far."""

    def __init__(
        self, steps: list[Step], x_BCHW: Tensor, *, side: int, device: torch.device, park: str | None, hold_bytes: int, grid: int
    ) -> None:
        self.steps, self.held_BCHW, self.first = steps, x_BCHW, 0
        self.device, self.park = device, torch.device(park) if park else device
        self.hold_bytes, self.grid = hold_bytes, grid
        self.moments: dict[int, Moments] = {}
        self.sizes = [(x_BCHW.shape[-2], x_BCHW.shape[-1])]  # before each step, and after the last
        self.sides, self.channels = [side], [x_BCHW.shape[1]]
        for step in steps:
            moves = isinstance(step, Convolution | Double)
            self.sizes.append(tuple(map(step.length, self.sizes[-1])) if moves else self.sizes[-1])  # type: ignore[union-attr,arg-type]
            self.sides.append(max(1, step.length(self.sides[-1])) if moves else self.sides[-1])  # type: ignore[union-attr]
            self.channels.append(step.conv.out_channels if isinstance(step, Convolution) else self.channels[-1])

    def measure(self) -> Moments:
        """The moments of every norm; those of the last one."""
        depth, moments = 0, Moments()
        for index, step in enumerate(self.steps):
            depth += isinstance(step, Keep) - isinstance(step, Add)
            if isinstance(step, Norm):
                # a kept input is the held activation itself: a block's first norm comes right after it
                begins = index if depth == 0 else index - 1 if isinstance(self.steps[index - 1], Keep) else None
                moments = self._measure_at(index, step, hold=begins)
        return moments

    def finish(self) -> Tensor:
        """What the last step gives, whole, on the device of the computation."""
        stop = len(self.steps)
        out_BCHW = self._empty(stop, self.device)
        for box in self._tiles(stop):
            box.crop(out_BCHW).copy_(self._run(stop, box))
        return out_BCHW

    def _measure_at(self, index: int, step: Norm, *, hold: int | None) -> Moments:
        if hold == self.first and index != 0:
            hold = None  # held already
        holds = hold is not None and self._fits(index)
        whole_BCHW = self._empty(index, self.park) if holds else None
        moments = Moments()
        for box in self._tiles(index):
            tile_BCHW = self._run(index, box)
            moments.add(tile_BCHW, step.norm.num_groups)
            if whole_BCHW is not None:
                box.crop(whole_BCHW).copy_(tile_BCHW)
        if whole_BCHW is not None and hold is not None:
            self.held_BCHW, self.first = whole_BCHW, hold
        self.moments[index] = moments
        return moments

    def _fits(self, index: int) -> bool:
        (height, width), pixel_bytes = self.sizes[index], len(self.held_BCHW) * self.held_BCHW.element_size()
        held = self.held_BCHW.nbytes if self.first else 0
        return height * width <= self.grid or height * width * self.channels[index] * pixel_bytes + held <= self.hold_bytes

    def _empty(self, index: int, device: torch.device) -> Tensor:
        return torch.empty(len(self.held_BCHW), self.channels[index], *self.sizes[index], dtype=self.held_BCHW.dtype, device=device)

    def _tiles(self, index: int) -> Iterator[Box]:
        return boxes(self.sizes[index], self.sides[index])

    def _run(self, stop: int, box: Box) -> Tensor:
        """What step `stop` reads in `box`, from what is held."""
        targets = [box]  # what every step has to give, found from the last to the first
        for index in reversed(range(self.first, stop)):
            step = self.steps[index]
            if isinstance(step, Convolution | Double):
                spans = (step.reads(span) for span in targets[-1])
                inside = (Span(max(s.start, 0), min(s.stop, n)) for s, n in zip(spans, self.sizes[index], strict=True))
                targets.append(Box(*inside))
            else:
                targets.append(targets[-1])
        source = targets.pop()
        x_BCHW, kept = source.crop(self.held_BCHW).to(self.device), []
        for index in range(self.first, stop):
            step, target = self.steps[index], targets.pop()
            if isinstance(step, Norm):
                x_BCHW = self.moments[index].normalise(step.norm, x_BCHW)
                x_BCHW = F.silu(x_BCHW, inplace=True) if step.silu else x_BCHW
            elif isinstance(step, Keep):
                kept.append((x_BCHW, source))
            elif isinstance(step, Add):
                shortcut_BCHW = target.crop(*kept.pop())
                x_BCHW = x_BCHW + (step.shortcut(shortcut_BCHW) if step.shortcut is not None else shortcut_BCHW)
            else:
                x_BCHW = step.run(x_BCHW, source, target)
            source = target
        return x_BCHW


def boxes(size: tuple[int, int], side: int) -> Iterator[Box]:
    """Equal tiles of at most `side` that cover the image once."""
    rows, columns = ([Span(n * i // k, n * (i + 1) // k) for i in range(k)] for n, k in ((n, math.ceil(n / side)) for n in size))
    return (Box(row, column) for row, column in product(rows, columns))


def _attend(attention: Any, moments: Moments, x_BCHW: Tensor, device: torch.device, side: int | None) -> None:
    """The attention of the middle block, one head, added to `x_BCHW` in place; within tiles of `side`, or over all positions."""

    def normed(part_BCHW: Tensor) -> Tensor:
        return moments.normalise(attention.group_norm, part_BCHW.to(device)).flatten(2).transpose(1, 2)

    size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
    for window in boxes(size, side or max(size)):
        part_BCHW = window.crop(x_BCHW)
        width = part_BCHW.shape[-1]
        chunks = [Box(rows, Span(0, width)) for rows in _bands(part_BCHW.shape[-2], max(1, QUERIES // width))]
        shape_BNC = (len(x_BCHW), part_BCHW.shape[-2] * width, x_BCHW.shape[1])
        key_BNC, value_BNC = (torch.empty(shape_BNC, dtype=x_BCHW.dtype, device=device) for _ in range(2))
        for chunk in chunks:
            tokens_BNC, at = normed(chunk.crop(part_BCHW)), slice(chunk.rows.start * width, chunk.rows.stop * width)
            key_BNC[:, at], value_BNC[:, at] = attention.to_k(tokens_BNC), attention.to_v(tokens_BNC)
        for chunk in chunks:
            queries_BCHW = chunk.crop(part_BCHW)
            query_BNC = attention.to_q(normed(queries_BCHW))
            found_BNC = F.scaled_dot_product_attention(query_BNC[:, None], key_BNC[:, None], value_BNC[:, None])[:, 0]
            found_BCHW = attention.to_out[0](found_BNC).transpose(1, 2).reshape(queries_BCHW.shape)
            queries_BCHW += found_BCHW.to(queries_BCHW.device)


def _bands(length: int, side: int) -> list[Span]:
    return [Span(start, min(start + side, length)) for start in range(0, length, side)]


def _smallest(steps: list[Step], x_BCHW: Tensor) -> int:
    """Pixels of the latent's grid: what an axis is after the steps of an encoder, or before those of a decoder."""
    height, width = x_BCHW.shape[-2:]
    for step in steps:
        if isinstance(step, Convolution):
            height, width = step.length(height), step.length(width)
    return int(height * width)


def _resnets(blocks: Any) -> list[Step]:
    return [step for block in blocks for step in _resnet(block)]


def _resnet(block: Any) -> list[Step]:
    return [
        Keep(), Norm(block.norm1), Convolution(block.conv1), Norm(block.norm2), Convolution(block.conv2), Add(block.conv_shortcut)
    ]  # fmt: skip
