"""The mathematics of diffusion: schedules, predictions, denoisers and samplers."""
