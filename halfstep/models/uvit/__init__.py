"""U-ViT (Bao et al. 2023)."""
