"""Draw pictures with a trained model.

Launch: python sample.py --number 64 --to samples.png
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from data import Images
from diffusion import TIMESTEPS, ddim_sample
from model import UNet
from train import PROJECT, draw, within


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs", PROJECT), help="the output folder of a run")
    parser.add_argument("--to", type=Path, default=Path("samples.png"), help="the picture to write")
    parser.add_argument("--number", type=within(1), default=64, help="how many to draw")
    parser.add_argument("--steps", type=within(1, TIMESTEPS), default=100, help="passes of the model")
    parser.add_argument("--eta", type=within(0.0, 1.0), default=0.0, help="noise on the way; 1 is DDPM's")
    parser.add_argument("--seed", type=within(0, 2**63 - 1), default=0, help="of the noise")
    return parser.parse_args(argv)


def load_model(run: Path) -> UNet:
    try:
        options = json.loads((run / "run.json").read_text())["arguments"]
        best = torch.load(run / "checkpoints" / "best.pt", map_location="cpu", weights_only=True)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}; --run names a run that has evaluated at least once")
    model = UNet(Images.shape[0], options["width"], options["levels"]).eval()
    model.load_state_dict(best["ema"])
    return model


def main(args: argparse.Namespace) -> None:
    model = load_model(args.run)
    generator = torch.Generator().manual_seed(args.seed)
    x_t = torch.randn(args.number, *Images.shape, generator=generator)
    draw(ddim_sample(model, x_t, args.steps, args.eta, generator), args.to)


if __name__ == "__main__":
    main(parse_args())
