"""A picture of where the decoder looks while it translates."""

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from data import OFFSET, PAD
from model import HEAD_WIDTH, Cache, Transformer, split_heads


def draw_attention(
    model: Transformer, batch: tuple[torch.Tensor, ...], device: torch.device, path: Path
) -> None:
    """Save where the decoder's last block looks in a source, for each byte of its translation."""
    source, tokens, targets = batch
    weights = attention_map(model, source.to(device), tokens.to(device))
    draw(weights[0], letters(source[0]), letters(targets[0]), path)


def attention_map(model: Transformer, source: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Weights, the mean over heads: (batch, tokens, source)."""
    queries: list[torch.Tensor] = []
    layer = model.decoder[-1].cross_attention.query
    hook = layer.register_forward_hook(lambda _, inputs, output: queries.append(split_heads(output)))
    caches = [Cache() for _ in model.decoder]
    model(source, tokens, caches)
    hook.remove()
    scores = (queries[0] @ caches[-1].source[0].mT).float() / math.sqrt(HEAD_WIDTH)
    return scores.masked_fill((source == PAD)[:, None, None], -math.inf).softmax(dim=3).mean(dim=1).cpu()


def letters(tokens: torch.Tensor) -> list[str]:
    return [chr(max(token - OFFSET, ord(" "))) for token in tokens.tolist() if token != PAD]


def draw(weights: torch.Tensor, columns: list[str], rows: list[str], path: Path) -> None:
    """The darker, the more."""
    side = 14  # pixels of a cell
    pixels = Image.fromarray((255 - 255 * weights[: len(rows), : len(columns)]).byte().numpy())
    pixels = pixels.resize((side * len(columns), side * len(rows)), Image.Resampling.NEAREST)
    image = Image.new("L", (side + pixels.width, side + pixels.height), 255)
    image.paste(pixels, (side, side))
    pen = ImageDraw.Draw(image)
    for place, letter in enumerate(columns, 1):
        pen.text((side * place + 3, 1), letter)
    for place, letter in enumerate(rows, 1):
        pen.text((3, side * place + 1), letter)
    path.parent.mkdir(exist_ok=True)
    image.save(path)
