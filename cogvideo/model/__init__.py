"""The transformer: blocks of two attention channels, masks and positions, initialisation, loss. Pure torch."""
