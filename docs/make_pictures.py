#!/usr/bin/env python3
"""Makes the pictures of docs/.

python docs/make_pictures.py                      degradation.png: the centre of one photograph under every preset
python docs/make_pictures.py measures FOLDER      measures.png: how the photographs of a folder measure, with the limits of two recipes
python docs/make_pictures.py stage1 TRACKING      stage1.png: decoded mean and variance while stage 1 trains, each run of an MLflow address
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PHOTO = ROOT / "examples" / "photos" / "two_dogs_at_a_window.jpg"
CELLS = ["original", "x4", "x8", "blur2_x4", "x4_noise40", "blur2_x4_noise20_jpeg50",
         "real_esrgan 0", "real_esrgan 1", "real_esrgan 2", "real_esrgan 3", "light_stablesr 0", "light_stablesr 1"]  # fmt: skip
PSNR = ("validation/psnr_stage1", "validation/psnr_original_encoder")
WIDE = ("sharpness", "noise", "blockiness", "bits_per_pixel", "text_area")  # shown on a logarithmic axis
SIZE_PX, SHOWN_PX, LABEL_PX, COLUMNS = 512, 232, 18, 4


def cell(rgb_HWC: np.ndarray, label: str) -> Image.Image:
    from supir_model.degradation import apply_rgb, draw
    from supir_model.images import crop

    name, _, position = label.partition(" ")
    shown = rgb_HWC if name == "original" else apply_rgb(rgb_HWC, draw(name, 0, int(position or 0), SIZE_PX))
    picture = Image.new("RGB", (SHOWN_PX, SHOWN_PX + LABEL_PX), "white")
    picture.paste(Image.fromarray(crop(shown, SHOWN_PX, u_y=0.2, u_x=0.5)), (0, LABEL_PX))
    ImageDraw.Draw(picture).text((2, 3), label.replace(" ", ", draw "), fill="black")
    return picture


def degradation() -> Path:
    from supir_model.images import crop, decode

    rgb_HWC = crop(decode(PHOTO.read_bytes()).rgb_HWC, SIZE_PX, u_y=0.38, u_x=0.4)
    rows = len(CELLS) // COLUMNS
    sheet = Image.new("RGB", (COLUMNS * (SHOWN_PX + 4), rows * (SHOWN_PX + LABEL_PX + 4)), "white")
    for i, label in enumerate(CELLS):
        at = (i % COLUMNS * (SHOWN_PX + 4), i // COLUMNS * (SHOWN_PX + LABEL_PX + 4))
        sheet.paste(cell(rgb_HWC, label), at)
    out = ROOT / "docs" / "pictures" / "degradation.png"
    out.parent.mkdir(exist_ok=True)
    sheet.save(out, optimize=True)
    return out


def measures(folder: str) -> Path:
    """A histogram of each measure; grey: where the recipe paper_20m may put its limit, dashed: strict."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from pipelines.recipes.curate import paper_rule, strict_rule
    from pipelines.reference_set import measured
    from pipelines.stages.measures import MEASURES

    found = measured(folder, max_pixels=10**8, threads=2)
    paper, strict = ({one.measure: one.threshold for one in rule().limits()} for rule in (paper_rule, strict_rule))
    rows = -(-len(MEASURES) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(11, 2.1 * rows), dpi=90, layout="constrained")
    for axis in axes.ravel()[len(MEASURES):]:
        axis.axis("off")
    for axis, name in zip(axes.ravel(), MEASURES):
        values = found.columns[name][np.isfinite(found.columns[name])]
        wide = name in WIDE
        edges = np.geomspace(max(values.min(), 1e-3), values.max(), 33) if wide else np.linspace(values.min(), max(values.max(), 1e-3), 33)
        axis.hist(np.clip(values, edges[0], None), edges, color="#4878a8")
        axis.set_xscale("log" if wide else "linear")
        axis.set_title(f"{name} ({len(values)})", fontsize=9)
        axis.tick_params(labelsize=7)
        if name in paper:
            axis.axvspan(paper[name].at_least, paper[name].at_most, color="black", alpha=0.25)
            axis.axvline(paper[name].at_least, color="black", linewidth=1)
        if name in strict:
            axis.axvline(strict[name].at_most, color="#b03030", linestyle="--", linewidth=1)
    out = ROOT / "docs" / "pictures" / "measures.png"
    figure.savefig(out)
    Image.open(out).convert("RGB").quantize(32).save(out, optimize=True)
    return out


def stage1(tracking: str) -> Path:
    """Medians of some 30 windows of the decoded pictures' mean and variance (the ground truth's dashed); PSNR of held-out ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from infra.tracking import find_runs

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), dpi=100, layout="constrained")
    shown = (("mean", "decoded_mean", "target_mean"), ("variance", "decoded_variance", "target_variance"), ("PSNR, dB", *PSNR))
    for run, colour in zip(find_runs(tracking, ["train_encoder"], "", [], 8), ("#2d7f78", "#c0563b", "#3f5fa8"), strict=False):
        for axis, (title, ours, theirs) in zip(axes, shown, strict=True):
            for name, style in ((ours, "-"), (theirs, "--")):
                points = np.array(run.curves[name])
                kept = max(1, len(points) // 30)
                seen, values = (points[: len(points) // kept * kept, i].reshape(-1, kept) for i in (0, 1))
                label = f"loss={run.params['loss']}" if style == "-" else None
                axis.plot(seen.mean(axis=1), np.median(values, axis=1), style, color=colour, linewidth=1.4, label=label)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("images seen", fontsize=8)
            axis.tick_params(labelsize=8)
    axes[0].legend(fontsize=8)
    out = ROOT / "docs" / "pictures" / "stage1.png"
    figure.savefig(out)
    Image.open(out).convert("RGB").quantize(48).save(out, optimize=True)
    return out


def main(argv: list[str]) -> int:
    makers = {"measures": measures, "stage1": stage1}
    if argv and (argv[0] not in makers or len(argv) != 2):
        raise SystemExit(__doc__)
    out = makers[argv[0]](argv[1]) if argv else degradation()
    print(f"{out.relative_to(ROOT)}: {out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
