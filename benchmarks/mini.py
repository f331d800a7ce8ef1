"""`./fluxgym bench mini`: how well flux-mini draws its captions, and how well its VAE reconstructs."""

from fluxcore.models.mini.evaluate import main

if __name__ == "__main__":
    main()
