"""Generating a byte at a time reads the text as the model was trained to."""

import torch

from data import Texts
from generate import draw, generate
from model import Cache, Transformer


def test_caches_change_nothing() -> None:
    torch.manual_seed(0)
    model = Transformer(Texts.vocab_size, heads=1, depth=2).eval()
    tokens = torch.randint(0, 256, (1, 12))
    caches = [Cache() for _ in model.blocks]
    steps = [model(tokens[:, :5], caches), *(model(tokens[:, i : i + 1], caches) for i in range(5, 12))]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(tokens))


def test_goes_on_after_the_context_is_full() -> None:
    torch.manual_seed(0)
    model = Transformer(Texts.vocab_size, heads=1, depth=2).eval()
    following = generate(model, b"one", context=8, temperature=1.0, top_p=1.0)
    assert all(next(following) < 256 for _ in range(50))


def test_draws_from_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert draw(logits, temperature=0, top_p=1) == 0
    assert {draw(logits, temperature=1.0, top_p=0.7) for _ in range(100)} == {0, 1}
    assert draw(logits, temperature=1.0, top_p=0.0) == 0
