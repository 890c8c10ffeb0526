"""From a model to translations: greedily, a batch at a time, or by beam search."""

import torch

from data import END, PAD, START
from model import Cache, Transformer


def greedy(model: Transformer, source: torch.Tensor, max_length: int) -> torch.Tensor:
    """(batch, source) to (batch, max_length): the likeliest token at each step up to END, then PAD."""
    caches = [Cache() for _ in model.decoder]
    tokens = torch.full((len(source), 1), START, device=source.device)
    output = torch.full((len(source), max_length), PAD, device=source.device)
    for step in range(max_length):
        ended = (tokens == END) | (tokens == PAD)
        if ended.all():
            break
        likeliest = model(source, tokens, caches)[:, :, END:].argmax(dim=2) + END
        tokens = likeliest.masked_fill(ended, PAD)
        output[:, step] = tokens[:, 0]
    return output


@torch.inference_mode()
def beam_search(
    model: Transformer, source: list[int], beam: int, max_length: int, length_penalty: float
) -> tuple[list[int], float]:
    """The best translation found and its score, the log-probability normalised as by Wu et al. (2016)."""
    sources = torch.tensor([source])
    tokens, scores = torch.tensor([[START]]), torch.zeros(1)  # (beam, length) and (beam,)
    caches = [Cache() for _ in model.decoder]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, max_length + 1):
        logits = model(sources.expand(len(tokens), -1), tokens[:, -1:], caches)[:, -1, END:]
        candidates = scores[:, None] + logits.log_softmax(dim=1)
        # twice as many as are kept, since half of them may end
        scores, order = candidates.flatten().topk(min(2 * beam, candidates.numel()))
        parents, following = order // candidates.shape[1], order % candidates.shape[1] + END
        tokens = torch.cat([tokens[parents], following[:, None]], dim=1)
        normalizer = ((5 + length) / 6) ** length_penalty
        ends = (following[:beam] == END).nonzero()[:, 0]
        ended += zip((scores[ends] / normalizer).tolist(), tokens[ends, 1:].tolist())
        ended = sorted(ended, reverse=True)[:beam]
        alive = (following != END).nonzero()[:beam, 0]
        scores, tokens = scores[alive], tokens[alive]
        if len(ended) == beam and ended[-1][0] >= scores[0] / normalizer:
            break
        for cache in caches:
            cache.select(parents[alive])
    else:  # what has not ended counts as it is
        ended += zip((scores / normalizer).tolist(), tokens[:, 1:].tolist())
    score, best = max(ended)
    return best, score
