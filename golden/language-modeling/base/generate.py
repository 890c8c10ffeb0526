"""Continue a text with a trained model.

Launch: python generate.py --prompt "Once upon"
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from data import START, Texts
from model import Cache, Transformer
from train import PROJECT, within


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs", PROJECT), help="the output folder of a run")
    parser.add_argument("--prompt", default="", help="the text to go on from")
    parser.add_argument("--max-bytes", type=within(1), default=500, help="how many bytes to add")
    parser.add_argument("--temperature", type=within(0.0), default=0.8, help="0 always takes the likeliest")
    parser.add_argument("--top-p", type=within(0.0, 1.0), default=0.95, help="probability to draw from")
    parser.add_argument("--seed", type=within(0, 2**63 - 1), default=0, help="of the draws")
    return parser.parse_args(argv)


def draw(logits: torch.Tensor, temperature: float, top_p: float) -> int:
    """Nucleus sampling (Holtzman et al., 2020) from logits, (vocabulary)."""
    if temperature == 0:
        return int(logits.argmax())
    probs, tokens = ((logits - logits.max()) / temperature).softmax(dim=0).sort(descending=True)
    outside = probs.cumsum(dim=0) - probs > top_p  # those before it have that much already
    return int(tokens[probs.masked_fill(outside, 0).multinomial(1)])


@torch.inference_mode()
def generate(
    model: Transformer, prompt: bytes, context: int, temperature: float, top_p: float
) -> Iterator[int]:
    """Yield the bytes that follow, without end; the model looks at no more than `context` of them."""
    text = tokens = [START, *prompt][-context:]
    caches = [Cache() for _ in model.blocks]
    while True:
        logits = model(torch.tensor([tokens]), caches)[0, -1, :START]
        tokens = [draw(logits, temperature, top_p)]
        yield tokens[0]
        text = text + tokens
        if len(caches[0]) == context:  # full: go on from the second half
            text = tokens = text[-(context + 1) // 2 :]
            caches = [Cache() for _ in model.blocks]


def main(args: argparse.Namespace) -> None:
    try:
        options = json.loads((args.run / "run.json").read_text())["arguments"]
        best = torch.load(args.run / "checkpoints" / "best.pt", map_location="cpu", weights_only=True)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}; --run names a run that has evaluated at least once")
    model = Transformer(Texts.vocab_size, options["heads"], options["depth"]).eval()
    model.load_state_dict(best["model"])
    torch.manual_seed(args.seed)
    prompt = os.fsencode(args.prompt)
    sys.stdout.buffer.write(prompt)
    following = generate(model, prompt, options["context"], args.temperature, args.top_p)
    for _ in range(args.max_bytes):
        sys.stdout.buffer.write(bytes([next(following)]))
        sys.stdout.flush()
    print()


if __name__ == "__main__":
    main(parse_args())
