"""The KL autoencoder of latent diffusion, and its published checkpoints."""
