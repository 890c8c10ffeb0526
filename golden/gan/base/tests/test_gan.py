"""The discriminator learns to tell, and then the generator to pass for real."""

import torch

from data import CHANNELS, IMAGE_SIZE
from losses import discriminator_loss, generator_loss
from model import Discriminator, Generator


def test_each_network_learns_while_the_other_rests() -> None:
    torch.manual_seed(0)
    generator = Generator(8, CHANNELS, IMAGE_SIZE, width=8)
    discriminator = Discriminator(CHANNELS, IMAGE_SIZE, width=8)
    batch = [torch.rand(8, CHANNELS, IMAGE_SIZE, IMAGE_SIZE), torch.randn(8, 8)]
    device = torch.device("cpu")
    for network, compute_loss in ((discriminator, discriminator_loss), (generator, generator_loss)):
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        aim = compute_loss(generator, discriminator, batch, device).item() / 10
        for _ in range(500):
            loss = compute_loss(generator, discriminator, batch, device)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if loss < aim:
                break
        assert loss < aim
