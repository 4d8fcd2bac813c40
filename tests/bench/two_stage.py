"""Asks a vision quickstart about held-out pictures, at once and in two stages: `python -m tests.bench.two_stage`.

Each question stands alone behind its picture, so no answer before it helps. In two stages the model first describes the
picture, and then answers with its own description in front of it.

    python -m gpt4jax.train --config configs/vision_quickstart.py --workdir runs/vision_quickstart
    python -m tests.bench.two_stage --workdir runs/vision_quickstart
"""

import argparse
import collections
import pathlib
import sys

from gpt4jax import job
from gpt4jax.data import rendered
from gpt4jax.evals import stats
from gpt4jax.inference import Engine, Request, images, two_stage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--pictures", type=int, default=600)
    flags = parser.parse_args(namespace=argparse.Namespace(weights=None))
    loaded = job.load_model(flags)
    vision = loaded.config.vision
    engine = Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=32, max_len=160)
    settings = {"max_tokens": 60, "temperature": 0.0, "stop": ["\n"]}
    asked, wanted = [], []
    for picture in rendered.pictures(0, flags.pictures, evaluation=True):
        for task, question, answer in picture.questions:
            asked.append(two_stage.Asked(f"<|image|>{question}\n", [picture.pixels_hwc]))
            wanted.append((task, answer))
    requests = []
    for one in asked:
        ids, given = images.prompt(loaded.tokenizer, vision, one.prompt, one.pictures)
        requests.append(Request(ids, images=given, **settings))
    at_once = [done.text for done in engine.generate(requests)]
    staged = two_stage.answer(engine, loaded.tokenizer, vision, asked, f"{rendered.DESCRIBE}\n", settings)
    for name, said in (("at once", at_once), ("in two stages", [one.text for one in staged])):
        right = collections.defaultdict(list)
        for (task, answer), text in zip(wanted, said, strict=True):
            right[task].append(text == answer)
        for task, found in sorted(right.items()):
            share = stats.mean(found)
            print(f"{name}: {task} {share.mean:.3f} ({share.low:.3f}-{share.high:.3f}; {share.items})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
