"""Keys and values of rows that come and go: one block of memory a layer, written in place.

A cache that grows by concatenation copies every key and value at every token; here a step writes one column. All rows end before the
same column, `end`, and begin at one of their own; what lies left of a row's beginning is masked for it. When the block is full, the
rows are moved to its left edge, and it is made larger if need be.

Legend: B rows, H heads, L columns (places of tokens), D width of a head.
"""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK = 64  # choice: columns to spare after a move, which costs what one concatenation did: a sixty-fourth of it a token


class RowsCache(Cache):
    """A transformers cache of up to `places` rows, for steps of one token a row. `starts` has each row's first column."""

    def __init__(self, places: int) -> None:
        super().__init__(layers=[])
        self.layers: list[Any] = self.layers
        self.places = places
        self.starts: list[int] = []
        self.end = 0
        self.capacity = 0

    @property
    def first(self) -> int:
        """The leftmost column that a row uses."""
        return min(self.starts, default=self.end)

    def add(self, cache: Any, lengths: list[int]) -> None:
        """Put rows beside those under way: layers of keys and values (rows, H, L, D), each row's `lengths` at the right end."""
        width = max(lengths)
        if not self.layers:
            self.layers = [_Block(self, layer.keys) for layer in cache.layers]
        self.make_room(width)
        low = len(self.starts)
        for block, layer in zip(self.layers, cache.layers, strict=True):
            block.keys[low:low + len(lengths), :, self.end - width:self.end] = layer.keys[:, :, -width:]
            block.values[low:low + len(lengths), :, self.end - width:self.end] = layer.values[:, :, -width:]
        self.starts += [self.end - length for length in lengths]

    def remove(self, place: int) -> None:
        """Take a row out; the last row comes to its place."""
        last, seen = len(self.starts) - 1, slice(self.first, self.end)
        if place != last:
            for block in self.layers:
                block.keys[place, :, seen] = block.keys[last, :, seen]
                block.values[place, :, seen] = block.values[last, :, seen]
        self.starts[place] = self.starts[last]
        self.starts.pop()

    def mask(self, window: int | None) -> Any:
        """(B, 1, 1, L): which columns the next token of each row sees, itself included; of those the last `window`."""
        import torch

        device = self.layers[0].keys.device
        column_L = torch.arange(self.first, self.end + 1, device=device)
        seen_BL = column_L >= torch.tensor(self.starts, device=device)[:, None]
        if window is not None:
            seen_BL &= column_L > self.end - window
        return seen_BL[:, None, None]

    def make_room(self, width: int = 0) -> None:
        """For the next token of each row, and for rows of `width` columns that begin now."""
        if width <= self.end < self.capacity:
            return
        first, span = self.first, self.end - self.first
        start = max(0, width - span)
        self.capacity = max(self.capacity, start + span + BLOCK)
        for block in self.layers:
            block.move(first, span, start, self.capacity)
        self.starts = [one - first + start for one in self.starts]
        self.end = start + span

    def advance(self) -> None:
        """After a step: its tokens belong to the rows."""
        self.end += 1


class _Block(CacheLayerMixin):
    """One layer's keys and values, (places, H, capacity, D)."""

    def __init__(self, rows: RowsCache, like: Any) -> None:
        super().__init__()
        self.rows, self.is_initialized = rows, True
        self.keys: Any = like.new_zeros(rows.places, like.shape[1], 0, like.shape[3])
        self.values: Any = self.keys

    def move(self, first: int, span: int, start: int, capacity: int) -> None:
        """`span` columns from `first` to `start`; one tensor after the other, so that no more than one stands twice."""
        self.keys = self._moved(self.keys, first, span, start, capacity)
        self.values = self._moved(self.values, first, span, start, capacity)

    def _moved(self, old: Any, first: int, span: int, start: int, capacity: int) -> Any:
        count = len(self.rows.starts)
        new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])  # zeros: what is masked must still be finite
        new[:count, :, start:start + span] = old[:count, :, first:first + span]
        return new

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """It is made with its memory."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Write one column (B, H, 1, D); returns all that the rows see (B, H, L, D)."""
        rows = self.rows
        count, seen = len(rows.starts), slice(rows.first, rows.end + 1)
        self.keys[:count, :, rows.end:rows.end + 1] = key_states
        self.values[:count, :, rows.end:rows.end + 1] = value_states
        return self.keys[:count, :, seen], self.values[:count, :, seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns that a query sees, 0)."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns from the first that a row uses."""
        return self.rows.end - self.rows.first

    def get_max_length(self) -> int:
        """It grows: none."""
        return -1
