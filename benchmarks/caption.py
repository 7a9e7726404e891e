#!/usr/bin/env python3
"""The caption pipeline beside a plain loop of `model.generate`, on captions of mixed length. Prints one JSON line.

    python benchmarks/caption.py [--images 48] [--batch 8] [--rounds 3]

A small LLaVA of random weights with the real number of image tokens (576 of 336 px), fp32, on the CPU, one thread for the model. Both
sides read the same encoded photographs, decode greedily and end at the same words: each picture's caption has a length drawn from a
seed, as captions have (the end token is forced at that step on both sides). The plain loop decodes a batch, generates until its
longest caption has ended, and goes on; ours keeps the places filled and decodes pictures ahead. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = (16, 96)  # tokens: captions of LLaVA-1.5 differ in length by about this factor
IMAGE_PX, PHOTO_PX = 336, 640
HIDDEN = 128


def build_model(folder: Path) -> None:
    """A LLaVA-1.5 in small: 24 x 24 patches, 4 layers."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
    from transformers import LlavaForConditionalGeneration as Llava

    from tests.tiny_models import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_hidden_layers=4, num_attention_heads=4,
                              image_size=IMAGE_PX, patch_size=14)
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=4 * HIDDEN, intermediate_size=12 * HIDDEN, num_hidden_layers=6,
                       num_attention_heads=8, num_key_value_heads=8, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
                         vision_feature_layer=-2, vision_feature_select_strategy="default")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Llava(config)
    model.generation_config.pad_token_id = 3
    model.save_pretrained(folder)
    size = {"height": IMAGE_PX, "width": IMAGE_PX}
    LlavaProcessor(image_processor=CLIPImageProcessorPil(size={"shortest_edge": IMAGE_PX}, crop_size=size), tokenizer=tokenizer,
                   patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1).save_pretrained(folder)


def photographs(count: int) -> list[bytes]:
    """Encoded photographs, each unlike the others, so that each is a picture of its own."""
    from PIL import Image, ImageOps

    paths = [path for path in sorted((ROOT / "examples" / "photos").iterdir()) if not path.name.startswith("bad_")]
    made = []
    for i in range(count):
        with Image.open(paths[i % len(paths)]) as opened:
            photo = opened.convert("RGB").resize((PHOTO_PX, PHOTO_PX))
        photo = ImageOps.mirror(photo) if (i // len(paths)) % 2 else photo
        photo.putpixel((0, 0), (i % 256, i // 256, 0))
        sink = io.BytesIO()
        photo.save(sink, "JPEG", quality=95)
        made.append(sink.getvalue())
    return made


def plain_loop(captioner: Any, photos: Sequence[bytes], lengths: Sequence[int], batch: int) -> int:
    """What one writes first: batches of `model.generate`; every caption ends at its length, the batch with its longest."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    from supir_model.images import decode

    class EndAt(LogitsProcessor):
        def __init__(self, mine: Sequence[int]) -> None:
            self.mine, self.steps = torch.tensor(mine), 0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.steps += 1
            scores[:, 2] = torch.where(self.mine == self.steps, torch.inf, -torch.inf)
            return scores

    tokens = 0
    for low in range(0, len(photos), batch):
        pictures = [captioner.fit(decode(data).rgb_HWC) for data in photos[low:low + batch]]
        inputs = captioner.processor(images=pictures, text=[captioner.prompt] * len(pictures), padding=True, return_tensors="pt")
        with torch.inference_mode():
            made = captioner.model.generate(**inputs, max_new_tokens=LENGTHS[1], do_sample=False, eos_token_id=2, pad_token_id=3,
                                            logits_processor=LogitsProcessorList([EndAt(lengths[low:low + batch])]))
        new = made[:, inputs["input_ids"].shape[1]:]
        tokens += int((new != 3).sum()) - len(pictures)
        captioner.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return tokens


def our_pipeline(captioner: Any, photos: Sequence[bytes], lengths: Sequence[int], batch: int) -> tuple[int, float]:
    """(tokens, seconds waited for pictures) of the stage as it runs on a worker."""
    import hashlib

    import pyarrow as pa
    from torch import inf

    from pipelines.stages.caption_checks import CheckSettings
    from pipelines.stages.captions import CaptionStage
    from pipelines.stages.llava_decoder import RollingDecoder

    ids = [hashlib.sha256(data).hexdigest() for data in photos]
    images = pa.table({"image_id": ids, "source_id": ids, "bytes": pa.array(photos, pa.binary())})

    class EndAt(RollingDecoder):
        def _choose(self, jobs: list[Any], logits_BV: Any) -> None:
            for row, job in enumerate(jobs):
                logits_BV[row, 2] = inf if len(job.tokens) + 1 == lengths[job.ticket.place] else -inf
            super()._choose(jobs, logits_BV)

    captioner.decoder = EndAt(captioner.model, [2], LENGTHS[1], batch)
    checks = CheckSettings(min_words=0, max_loop=10**6, max_repeated_share=1.0, plain_english=False, reasks=0)
    stage = CaptionStage(captioner=captioner.settings, checks=checks, batch_size=batch)
    stage.__dict__["engine"] = captioner
    result = stage.process({"images": images}, {})
    return int(result.counted["tokens"]), result.counted["wait_s"]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    import torch

    from pipelines.stages.llava import LlavaSettings

    torch.set_num_threads(1)
    photos, chance = photographs(args.images), random.Random(0)
    lengths = [chance.randint(*LENGTHS) for _ in photos]
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder))
        captioner = LlavaSettings(model=folder, canary=False, max_new_tokens=LENGTHS[1]).build("", args.batch)
        captioner.load()
        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        cpu: dict[str, list[float]] = {"plain": [], "ours": []}  # of this process: what other programs on the machine do not disturb
        waited = []
        plain_loop(captioner, photos[:args.batch], [4] * args.batch, args.batch)  # libraries load the rest of themselves
        for done in range(args.rounds):
            start, cpu_start = time.monotonic(), time.process_time()
            plain_tokens = plain_loop(captioner, photos, lengths, args.batch)
            seconds["plain"].append(time.monotonic() - start)
            cpu["plain"].append(time.process_time() - cpu_start)
            start, cpu_start = time.monotonic(), time.process_time()
            our_tokens, wait_s = our_pipeline(captioner, photos, lengths, args.batch)
            seconds["ours"].append(time.monotonic() - start)
            cpu["ours"].append(time.process_time() - cpu_start)
            waited.append(wait_s / seconds["ours"][-1])
            assert plain_tokens == our_tokens == sum(lengths) - len(lengths), (plain_tokens, our_tokens, sum(lengths))
            print(f"round {done + 1}: plain {seconds['plain'][-1]:.1f} s, ours {seconds['ours'][-1]:.1f} s", file=sys.stderr, flush=True)
    plain_s, ours_s = (statistics.median(seconds[side]) for side in ("plain", "ours"))
    print(json.dumps({"benchmark": "caption", "images": args.images, "batch": args.batch, "rounds": args.rounds, "image_tokens": 576,
                      "tokens_a_caption": [*LENGTHS], "threads": 1, "plain_images_per_s": round(args.images / plain_s, 3),
                      "ours_images_per_s": round(args.images / ours_s, 3), "ratio": round(plain_s / ours_s, 3),
                      "ratios": [round(a / b, 3) for a, b in zip(seconds["plain"], seconds["ours"], strict=True)],
                      "cpu_ratios": [round(a / b, 3) for a, b in zip(cpu["plain"], cpu["ours"], strict=True)],
                      "ours_tokens_per_s": round(sum(lengths) / ours_s, 1),
                      "wait_share": round(statistics.median(waited), 4)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
