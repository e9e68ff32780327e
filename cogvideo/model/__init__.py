"""The transformer.

Blocks of two attention channels, masks and positions, initialisation, loss. Pure torch.
"""
