"""Make pictures with a trained generator.

Launch: python sample.py --output samples.png
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from data import CHANNELS, IMAGE_SIZE
from model import Generator
from train import PROJECT, save_grid, within


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs", PROJECT), help="the output folder of a run")
    parser.add_argument("--output", type=Path, default=Path("samples.png"), help="the picture to write")
    parser.add_argument("--rows", type=within(1), default=8, help="rows of eight pictures")
    parser.add_argument("--seed", type=within(0, 2**63 - 1), default=0, help="of the noise")
    return parser.parse_args(argv)


def load_generator(run: Path) -> tuple[Generator, int]:
    """The best generator of a run so far, and the length of its noise."""
    options = json.loads((run / "run.json").read_text())["arguments"]
    best = torch.load(run / "checkpoints" / "best.pt", map_location="cpu", weights_only=True)
    generator = Generator(options["latent"], CHANNELS, IMAGE_SIZE, options["width"]).eval()
    generator.load_state_dict(best["generator"])
    return generator, options["latent"]


@torch.inference_mode()
def main(args: argparse.Namespace) -> None:
    try:
        generator, latent = load_generator(args.run)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}; --run names a run that has evaluated at least once")
    torch.manual_seed(args.seed)
    try:
        save_grid(generator(torch.randn(8 * args.rows, latent)), args.output)
    except (OSError, ValueError) as error:  # the second for a suffix of no kind of picture
        sys.exit(f"cannot write {args.output}: {error}")


if __name__ == "__main__":
    main(parse_args())
