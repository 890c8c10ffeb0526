"""Translate lines with a trained model, by beam search.

Launch: python translate.py "the third of March, 1987"
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from data import Pairs, decode, encode
from model import Transformer
from search import beam_search
from train import PROJECT, within


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("lines", nargs="*", help="what to translate; without any, standard input")
    parser.add_argument("--run", type=Path, default=Path("runs", PROJECT), help="the output folder of a run")
    parser.add_argument("--beam", type=within(1), default=4, help="translations to keep in sight")
    parser.add_argument("--length-penalty", type=within(0.0), default=0.6, help="more favours long ones")
    parser.add_argument("--max-bytes", type=within(1), default=300, help="of a translation")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    try:
        options = json.loads((args.run / "run.json").read_text())["arguments"]
        best = torch.load(args.run / "checkpoints" / "best.pt", map_location="cpu", weights_only=True)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}; --run names a run that has evaluated at least once")
    model = Transformer(Pairs.vocab_size, options["heads"], options["depth"], dropout=0.0).eval()
    model.load_state_dict(best["model"])
    for line in args.lines or sys.stdin:
        tokens, _ = beam_search(model, encode(line.strip()), args.beam, args.max_bytes, args.length_penalty)
        print(decode(tokens), flush=True)


if __name__ == "__main__":
    main(parse_args())
