"""Decoding does what it says: caches and padding change nothing, and beam search finds the best."""

import itertools

import torch
import torch.nn.functional as F

from data import END, PAD, START
from model import Cache, Transformer
from search import beam_search, greedy

SOURCE = [5, 4, 3, 5, END]


def small_model() -> Transformer:
    """Three letters and END, at random."""
    torch.manual_seed(0)
    model = Transformer(vocab_size=6, heads=1, depth=2, dropout=0.5).eval()
    for matrix in (parameter for parameter in model.parameters() if parameter.ndim == 2):
        torch.nn.init.normal_(matrix, std=0.2)
    return model


def score(model: Transformer, tokens: tuple[int, ...], length_penalty: float) -> float:
    logits = model(torch.tensor([SOURCE]), torch.tensor([[START, *tokens[:-1]]]))[0, :, END:]
    log_probs = logits.log_softmax(dim=1).gather(1, torch.tensor(tokens)[:, None] - END)
    return log_probs.sum().item() / ((5 + len(tokens)) / 6) ** length_penalty


def test_caches_change_nothing() -> None:
    model = small_model()
    source, tokens = torch.tensor([SOURCE]), torch.randint(3, 6, (1, 7))
    caches = [Cache() for _ in model.decoder]
    steps = [model(source, tokens[:, i : i + 1], caches) for i in range(7)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(source, tokens))


def test_padding_changes_nothing() -> None:
    model = small_model()
    source, tokens = torch.tensor([SOURCE]), torch.randint(3, 6, (1, 7))
    longer = F.pad(source, (0, 9), value=PAD)
    torch.testing.assert_close(model(longer, tokens), model(source, tokens))
    assert torch.equal(greedy(model, longer, 8), greedy(model, source, 8))


def test_a_beam_of_one_is_greedy() -> None:
    model = small_model()
    for source in itertools.product([3, 4, 5], repeat=3):
        found, _ = beam_search(model, [*source, END], beam=1, max_length=8, length_penalty=0.6)
        row = greedy(model, torch.tensor([[*source, END]]), 8)[0]
        assert found == row[row != PAD].tolist()


def test_a_wide_beam_finds_the_best() -> None:
    """All that end within three letters or do not end; the penalty is such that long ones win."""
    model = small_model()
    translations = [
        (*letters, *end)
        for length in range(5)
        for letters in itertools.product([3, 4, 5], repeat=length)
        for end in ([(END,)] if length < 4 else [()])
    ]
    best = max(translations, key=lambda tokens: score(model, tokens, 2.0))
    found, found_score = beam_search(model, SOURCE, beam=200, max_length=4, length_penalty=2.0)
    assert tuple(found) == best
    assert abs(found_score - score(model, best, 2.0)) < 1e-5
