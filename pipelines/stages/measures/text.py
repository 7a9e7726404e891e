"""Text: lines of thin strokes of one tone on a calm ground. Pages, windows, captions and banners; not words written over texture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stages.measures.tiles import rounded

STROKE_PX = 7  # choice: what is narrower than this and stands out is a stroke
STROKE_STEP = 40  # choice: grey levels by which it stands out
GAP_PX = 12  # choice: letters and words closer than this are one line
LEAST_PX, HIGHEST_PX, LEAST_WIDTH_PX = 4, 40, 24  # choice: of a line
GRAIN_PX = 4  # choice: lines are sought in columns of this width: a third of the time
LONG = 3  # choice: a line is this much longer than high
FULL = 0.55  # choice: of the box around it, after letters were joined: leaves and branches make ragged boxes
LEAST_INK = 0.005  # choice: of a picture; less is not worth looking at
INK = (0.12, 0.6)  # measured: strokes are a fifth to a half of a line of print
QUIET = 0.08  # choice: strokes above and below a line, where the space between lines is
CALM = 25.0  # choice: standard deviation of the ground between the strokes, in grey levels


def text_area(small_HW: NDArray[Any]) -> float:
    """The share (0..1) of a picture, `halved` to below tiles.SMALL_PX, that lines of text cover; letters of 14 px at 1024 are still apart.

    Strokes by top-hat and black-hat, joined along the line (after Epshtein's and others' remark that text is strokes of one width; our own
    definition), then kept where they are long, dense, alternate with their ground, lie between quiet rows, and the ground is of one tone.
    """
    import cv2

    square = np.ones((STROKE_PX, STROKE_PX), np.uint8)
    bright_HW = cv2.subtract(small_HW, cv2.morphologyEx(small_HW, cv2.MORPH_OPEN, square))
    dark_HW = cv2.subtract(cv2.morphologyEx(small_HW, cv2.MORPH_CLOSE, square), small_HW)
    return rounded(min(sum(_lines(small_HW, one_HW) for one_HW in (bright_HW, dark_HW)) / small_HW.size, 1.0))


def _lines(small_HW: NDArray[Any], hat_HW: NDArray[Any]) -> int:
    """Pixels in boxes around lines of text of one polarity."""
    import cv2

    ink_HW = cv2.threshold(hat_HW, STROKE_STEP, 255, cv2.THRESH_BINARY)[1]
    if cv2.countNonZero(ink_HW) < LEAST_INK * ink_HW.size or ink_HW.shape[1] < LEAST_WIDTH_PX:
        return 0
    joined_WH = cv2.transpose(_grains(ink_HW))  # measured: turned, what joins along a line takes half of the time
    joined_WH = cv2.morphologyEx(joined_WH, cv2.MORPH_CLOSE, np.ones((GAP_PX // GRAIN_PX, 1), np.uint8))
    joined_WH = cv2.morphologyEx(joined_WH, cv2.MORPH_OPEN, np.ones((LEAST_WIDTH_PX // GRAIN_PX - 1, LEAST_PX - 1), np.uint8))
    total = 0
    for outline in cv2.findContours(joined_WH, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:  # measured: components take 20 times as long
        y, x, height, width = cv2.boundingRect(outline)
        is_long = GRAIN_PX * width >= max(LONG * height, LEAST_WIDTH_PX) and LEAST_PX <= height <= HIGHEST_PX
        if is_long and cv2.contourArea(outline) >= FULL * (width - 1) * (height - 1):
            x, width = x * GRAIN_PX, width * GRAIN_PX
            total += width * height if _is_text(small_HW, ink_HW, x, y, width, height) else 0
    return total


def _grains(ink_HW: NDArray[Any]) -> NDArray[Any]:
    """1 where any of GRAIN_PX neighbours in a row is ink: four bytes are one number."""
    ragged = -ink_HW.shape[1] % GRAIN_PX
    whole_HW = np.pad(ink_HW, ((0, 0), (0, ragged))) if ragged else np.ascontiguousarray(ink_HW)
    return (whole_HW.view(np.uint32) != 0).view(np.uint8)


def _is_text(small_HW: NDArray[Any], ink_HW: NDArray[Any], x: int, y: int, width: int, height: int) -> bool:
    import cv2

    across = slice(x, x + width)
    inside_HW = ink_HW[y:y + height, across]
    if not INK[0] < cv2.countNonZero(inside_HW) / inside_HW.size < INK[1]:
        return False
    around = slice(max(y - 3, 0), max(y - 1, 0)), slice(y + height + 1, y + height + 3)
    beside = [ink_HW[rows, across] for rows in around if ink_HW[rows, across].size]
    if sum(map(cv2.countNonZero, beside)) > QUIET * sum(one_HW.size for one_HW in beside):
        return False
    middle_W = inside_HW[height // 2]
    if cv2.countNonZero(cv2.absdiff(middle_W[1:], middle_W[:-1])) < width / height:
        return False
    return bool(cv2.meanStdDev(small_HW[y:y + height, across], mask=cv2.bitwise_not(inside_HW))[1][0, 0] <= CALM)
