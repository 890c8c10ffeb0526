"""Continue a text with a trained model.

Launch: python generate.py --prompt "def "
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from data import START, Texts
from model import Cache, Transformer


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs", "language-modeling"), help="the output folder of a run")
    parser.add_argument("--prompt", default="", help="the text to go on from")
    parser.add_argument("--max-tokens", type=int, default=500, help="how many bytes at most")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest")
    parser.add_argument("--top-p", type=float, default=0.95, help="draw from the likeliest of this share")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    return parser.parse_args(argv)


def draw(logits: torch.Tensor, temperature: float, top_p: float) -> int:
    """Nucleus sampling (Holtzman et al., 2020) from logits, (vocabulary)."""
    if temperature == 0:
        return int(logits.argmax())
    share, tokens = (logits / temperature).softmax(dim=0).sort(descending=True)
    outside = share.cumsum(dim=0) - share >= top_p  # those before it have that share already
    return int(tokens[share.masked_fill(outside, 0).multinomial(1)])


@torch.inference_mode()
def generate(
    model: Transformer, prompt: bytes, max_tokens: int, temperature: float, top_p: float
) -> Iterator[int]:
    """Yield the bytes that follow."""
    caches = [Cache() for _ in model.blocks]
    tokens = [START, *prompt]
    for _ in range(max_tokens):
        logits = model(torch.tensor([tokens]), caches)[0, -1]
        tokens = [draw(logits, temperature, top_p)]
        yield tokens[0]


def main(args: argparse.Namespace) -> None:
    trained = json.loads((args.run / "run.json").read_text())["arguments"]
    model = Transformer(Texts.vocab_size, trained["heads"], trained["depth"]).eval()
    best = torch.load(args.run / "checkpoints" / "best.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(best["model"])
    torch.manual_seed(args.seed)
    prompt = args.prompt.encode()
    sys.stdout.buffer.write(prompt)
    for byte in generate(model, prompt, args.max_tokens, args.temperature, args.top_p):
        sys.stdout.buffer.write(bytes([byte]))
        sys.stdout.flush()


if __name__ == "__main__":
    main(parse_args())
