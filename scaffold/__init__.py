"""scaffold writes the plain-PyTorch project an expert would have written for exactly your choice."""

__version__ = "0.1.0"
