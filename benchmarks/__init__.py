"""The project's figures, printed by `./fluxgym bench NAME`."""
