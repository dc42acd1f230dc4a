"""The same judge in process and behind `mtjudge serve`: `python benchmarks/judge_ways.py --model=runs/demo`.

Scores --pictures pictures both ways in turn, --rounds times. Prints pictures a second of each and their ratio, the largest
difference between their scores, and how many programs the judge in process compiled after its warm-up over --mixed questions:
single pictures and pairs of all sizes, one and several at a time.
"""

import argparse
import io
import os
import random
import signal
import statistics
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from PIL import Image
from serve_soak import served

import mtjudge_jax
from mtjudge_jax.client import Client
from mtjudge_jax.judge import Judge

SINGLE, PAIRS, ASKED = "technical", "pairwise_technical", "alignment"


def crops(count: int) -> list[bytes]:
    """PNG files of 40 to 160 pixels a side, cut out of the demo's photographs."""
    rng, out = random.Random(0), []
    folder = Path(mtjudge_jax.__file__).parent / "demo/assets/photos"
    photos = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]
    for number in range(count):
        photo, buffer = photos[number % len(photos)], io.BytesIO()
        width, height = rng.randint(40, min(160, photo.width)), rng.randint(40, min(160, photo.height))
        left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
        photo.crop((left, top, left + width, top + height)).save(buffer, "PNG")
        out.append(buffer.getvalue())
    return out


def mixed(judge: Judge, pictures: list[bytes], count: int) -> int:
    """How many programs were compiled while `count` questions of many kinds were asked."""
    compiled, rng, asked = [], random.Random(1), 0
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    while asked < count:
        some = rng.sample(pictures, rng.randint(1, 12))
        way = rng.choice(("score", "asked", "judge", "pair", "compare"))
        if way == "score":
            judge.score(some, task=SINGLE)
        elif way == "asked":
            judge.score(some, task=ASKED, instructions="a dog " * rng.randint(1, 4))
        elif way == "judge":
            judge.judge(some[0], task=SINGLE)
        elif way == "pair" and len(some) > 1:
            judge.judge(some[:2], task=PAIRS, both_orders=True)
        elif len(some) > 1:
            judge.compare(some[:4], task=PAIRS)
        asked += len(some) if way in ("score", "asked") else 1
    return len(compiled)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", default="runs/demo")
    ask.add_argument("--pictures", type=int, default=200)
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--batch", type=int, default=8)
    ask.add_argument("--mixed", type=int, default=1000)
    ask = ask.parse_args()
    pictures = crops(ask.pictures)
    judge = Judge.from_pretrained(ask.model, batch=ask.batch)
    judge.warm_up(tasks=(SINGLE, PAIRS, ASKED))
    print(f"{mixed(judge, pictures, ask.mixed)} programs compiled after the warm-up over {ask.mixed} mixed questions")
    process, url = served(ask.model, ask.batch)
    try:
        client, seconds, scores = Client(url), {"in process": [], "served": []}, {}
        ways = {"in process": judge.score, "served": client.score}
        for number in range(ask.rounds + 1):
            for way, score in ways.items():
                began = time.perf_counter()
                scores[way] = np.array(score(pictures, task=SINGLE))
                if number:
                    seconds[way].append(time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    speed = {way: ask.pictures / statistics.median(one) for way, one in seconds.items()}
    shown = ", ".join(f"{way} {one:.1f} pictures/s" for way, one in speed.items())
    print(f"{shown}: {speed['served'] / speed['in process']:.2f} of it")
    print(f"largest difference of {ask.pictures} scores: {np.abs(scores['served'] - scores['in process']).max():.1e}")


if __name__ == "__main__":
    main()
