"""What of SSMoE's effect is due to its eigenvectors: variants of the spectral routers, measured at equal α."""
