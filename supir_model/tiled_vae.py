"""Encoder and decoder of the autoencoder on images that do not fit at once. Released code; not in the paper.

All tiles go in lock step from one group norm to the next, whose mean and variance are averages over the tiles, weighted by
their pixels; attention stays within a tile. So the result differs from the untiled one (0.1 to 0.4 on a tiny network). Between
two steps a tile waits on `park`, by default where it came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENCODER_PAD_PX = 32  # released code: what an encoder tile sees beyond its own part
DECODER_PAD = 11  # released code: the same for a decoder tile, in latent pixels


class Span(NamedTuple):
    """A tile along one axis: what is read, [start, stop), and what is written, in pixels of the output."""

    start: int
    stop: int
    out_start: int
    out_stop: int


Tiles = list[Tensor]


def tiled_encoder(encoder: Any, x_BCHW: Tensor, tile_px: int, *, park: str | None = None) -> Tensor:
    """`encoder(x_BCHW)` by tiles of about `tile_px` + 64 pixels a side; the whole at once where that is not larger."""
    factor = 2 ** (len(encoder.down_blocks) - 1)
    return _tiled(encoder, _encode, x_BCHW, tile_px, ENCODER_PAD_PX, lambda position: position // factor, park)


def tiled_decoder(decoder: Any, z_BCHW: Tensor, tile: int, *, park: str | None = None) -> Tensor:
    """`decoder(z_BCHW)` by tiles of about `tile` + 22 latent pixels a side; the whole at once where that is not larger."""
    factor = 2 ** (len(decoder.up_blocks) - 1)
    return _tiled(decoder, _decode, z_BCHW, tile, DECODER_PAD, lambda position: position * factor, park)


def spans(length: int, tile: int, pad: int, scale: Callable[[int], int]) -> list[Span]:
    """The tiles of one axis: equal cores rounded up to a round size, each grown by `pad` and clipped for reading."""
    count = max(1, math.ceil((length - 2 * pad) / tile))
    core = _round_up(math.ceil((length - 2 * pad) / count), tile)
    found = []
    for i in range(count):
        start, stop = pad + i * core, min(pad + (i + 1) * core, length)
        first, last = (0 if start <= pad else start), (length if stop >= length - pad else stop)
        found.append(Span(max(0, start - pad), min(length, stop + pad), scale(first), scale(last)))
    return found


def _round_up(size: int, limit: int) -> int:
    """`size` rounded up to the largest of 32, 16, 8, 4, 2 that keeps it within `limit`."""
    rounded = (math.ceil(size / unit) * unit for unit in (32, 16, 8, 4, 2))
    return next((r for r in rounded if r <= limit), size)


def _tiled(
    net: Any,
    run: Callable[[Any, _Lockstep, Tiles], Tiles],
    x_BCHW: Tensor,
    tile: int,
    pad: int,
    scale: Callable[[int], int],
    park: str | None,
) -> Tensor:
    height, width = x_BCHW.shape[-2:]
    if max(height, width) <= 2 * pad + tile:
        whole: Tensor = net(x_BCHW)
        return whole
    boxes = [(v, h) for v in spans(height, tile, pad, scale) for h in spans(width, tile, pad, scale)]
    step = _Lockstep(x_BCHW.device, torch.device(park) if park else x_BCHW.device)
    tiles = run(net, step, [x_BCHW[:, :, v.start : v.stop, h.start : h.stop].to(step.park) for v, h in boxes])
    out = x_BCHW.new_empty(len(x_BCHW), tiles[0].shape[1], scale(height), scale(width))
    for (v, h), done in zip(boxes, tiles, strict=True):
        top, left = v.out_start - scale(v.start), h.out_start - scale(h.start)
        part = done[:, :, top : top + v.out_stop - v.out_start, left : left + h.out_stop - h.out_start]
        out[:, :, v.out_start : v.out_stop, h.out_start : h.out_stop] = part
    return out


class _Lockstep:
    """One operation on all tiles: each visits the device of the network and goes back to where tiles wait."""

    def __init__(self, device: torch.device, park: torch.device) -> None:
        self.device, self.park = device, park

    def each(self, function: Callable[..., Tensor], *tiles: Tiles) -> Tiles:
        return [function(*(t.to(self.device) for t in group)).to(self.park) for group in zip(*tiles, strict=True)]

    def norm(self, norm: nn.GroupNorm, tiles: Tiles, then: Callable[[Tensor], Tensor]) -> Tiles:
        """Group norm by the statistics of all tiles, and what follows it."""
        pixels = torch.tensor([float(t.shape[-2] * t.shape[-1]) for t in tiles], device=self.device)
        weights = (pixels / pixels.sum())[:, None, None]
        grouped = [t.to(self.device).float().reshape(len(t), norm.num_groups, -1) for t in tiles]
        mean_BG1 = (torch.stack([g.mean(-1) for g in grouped]) * weights).sum(0)[..., None]
        var_BG1 = (torch.stack([g.var(-1, correction=0) for g in grouped]) * weights).sum(0)[..., None]
        del grouped

        def apply(t: Tensor) -> Tensor:
            normed = (t.reshape(len(t), norm.num_groups, -1) - mean_BG1.to(t)) / (var_BG1.to(t) + norm.eps).sqrt()
            return then(normed.reshape(t.shape) * norm.weight[:, None, None] + norm.bias[:, None, None])

        return self.each(apply, tiles)


def _encode(encoder: Any, step: _Lockstep, tiles: Tiles) -> Tiles:
    tiles = step.each(encoder.conv_in, tiles)
    for block in encoder.down_blocks:
        tiles = _resnets(block, step, tiles)
        for downsampler in block.downsamplers or ():
            tiles = step.each(downsampler, tiles)
    return _out(encoder, step, _middle(encoder.mid_block, step, tiles))


def _decode(decoder: Any, step: _Lockstep, tiles: Tiles) -> Tiles:
    tiles = _middle(decoder.mid_block, step, step.each(decoder.conv_in, tiles))
    for block in decoder.up_blocks:
        tiles = _resnets(block, step, tiles)
        for upsampler in block.upsamplers or ():
            tiles = step.each(upsampler, tiles)
    return _out(decoder, step, tiles)


def _middle(block: Any, step: _Lockstep, tiles: Tiles) -> Tiles:
    first, second = block.resnets
    tiles = _resnet(first, step, tiles)
    attention = block.attentions[0]
    attended = step.norm(attention.group_norm, tiles, lambda t: _attend(attention, t))
    return _resnet(second, step, step.each(torch.add, tiles, attended))


def _attend(attention: Any, x_BCHW: Tensor) -> Tensor:
    """The attention of the middle block on normed features, without its own norm and residual; one head."""
    tokens_BNC = x_BCHW.flatten(2).transpose(1, 2)
    query, key, value = (project(tokens_BNC) for project in (attention.to_q, attention.to_k, attention.to_v))
    out_BNC: Tensor = attention.to_out[0](F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0])
    return out_BNC.transpose(1, 2).reshape(x_BCHW.shape)


def _resnets(block: Any, step: _Lockstep, tiles: Tiles) -> Tiles:
    for resnet in block.resnets:
        tiles = _resnet(resnet, step, tiles)
    return tiles


def _resnet(resnet: Any, step: _Lockstep, tiles: Tiles) -> Tiles:
    inside = step.norm(resnet.norm1, tiles, lambda t: resnet.conv1(F.silu(t)))
    inside = step.norm(resnet.norm2, inside, lambda t: resnet.conv2(F.silu(t)))
    shortcut = resnet.conv_shortcut or nn.Identity()
    return step.each(lambda x, h: shortcut(x) + h, tiles, inside)


def _out(net: Any, step: _Lockstep, tiles: Tiles) -> Tiles:
    return step.norm(net.conv_norm_out, tiles, lambda t: net.conv_out(F.silu(t)))
