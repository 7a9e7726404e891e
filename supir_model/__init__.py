"""The mathematics of SUPIR: networks, sampler, degradation. Torch, diffusers and transformers; no cluster, no network.

A tour, in the order in which an image travels:
    images      bytes -> upright sRGB pixels, and back
    preprocess  pixels -> x_BCHW in [-1, 1] at the working size
    encoder     x -> z_lq by the degradation-robust encoder; z -> x by the fixed decoder
    text        prompts -> context_BND, pooled_BD
    trunk, connectors, network   the adaptor and how it enters an unmodified SDXL UNet
    schedule, denoiser, guidance  eps network -> D(x, sigma) -> guided D(x, sigma)
    sampler     the restoration-guided sampler (Algorithm 1); tiling holds its tiled variant
    colour      the colour of the stage-1 image given to the result
    restore     all of it in one call
    weights     files in and out: our folders, the official checkpoint layout
presets name the sizes and settings of the paper, of the released model and of `tiny`.

Letters of shape suffixes: B batch, C channels, H height, W width, N tokens, D token width, T time steps.
"""
