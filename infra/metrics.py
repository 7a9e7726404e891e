"""The names under which training is measured, fixed here so that any two runs can be compared.

The x of every curve is the number of images that the updates so far have seen, so that runs of different batches can be laid together.
"""

from __future__ import annotations

from enum import StrEnum


class Metric(StrEnum):
    """One curve of a training run. What is not here is not logged: `Metric(name)` refuses it."""

    STEP = "step"  # updates done
    LOSS = "loss"  # what the step minimises, mean of the global batch
    IMAGE = "image"  # stage 1: squared distance of the decoded images
    LATENT = "latent"  # stage 1: squared distance of the latents
    KL = "kl"  # stage 1, where it is a term: nats a number of the latent
    PERCEPTUAL = "perceptual"  # stage 1, where it is a term
    ERROR = "error"  # stage 2 with min-SNR: the squared error without weights
    DECODED_MEAN = "decoded_mean"
    DECODED_VARIANCE = "decoded_variance"
    TARGET_MEAN = "target_mean"
    TARGET_VARIANCE = "target_variance"
    LOSS_T1 = "loss_t1of4"  # stage 2: the loss of the timesteps 0 to 249, and so on
    LOSS_T2 = "loss_t2of4"
    LOSS_T3 = "loss_t3of4"
    LOSS_T4 = "loss_t4of4"
    LR = "lr"
    GRAD_NORM = "grad_norm"  # over all parameters, before clipping
    ALARM = "alarm"  # 1 where the stage said that something is going wrong
    IMAGES_PER_S = "images_per_s"
    MFU = "mfu"  # share of the devices' nominal FLOP/s, where that is known (training/utilisation.py)
    DATA_WAIT_SHARE = "data_wait_share"  # of the step's time
    SAVE_STALL_S = "save_stall_s"  # how long a checkpoint held up the step
    MEMORY_MB = "memory_mb"
    VALIDATION_LOSS = "validation/loss"  # stage 2: mean over eight timesteps, fixed pictures, fixed noise
    VALIDATION_LOSS_T062 = "validation/loss/t062"
    VALIDATION_LOSS_T187 = "validation/loss/t187"
    VALIDATION_LOSS_T312 = "validation/loss/t312"
    VALIDATION_LOSS_T437 = "validation/loss/t437"
    VALIDATION_LOSS_T562 = "validation/loss/t562"
    VALIDATION_LOSS_T687 = "validation/loss/t687"
    VALIDATION_LOSS_T812 = "validation/loss/t812"
    VALIDATION_LOSS_T937 = "validation/loss/t937"
    VALIDATION_PSNR_RESTORED = "validation/psnr_restored"  # stage 2: fixed pictures restored, against the original, dB
    VALIDATION_PSNR_STAGE1 = "validation/psnr_stage1"  # stage 1: D(E_dr(x_lq)) against the original, dB
    VALIDATION_PSNR_ORIGINAL_ENCODER = "validation/psnr_original_encoder"
    VALIDATION_PSNR_DEGRADED = "validation/psnr_degraded"

    @property
    def higher_is_better(self) -> bool:
        """Which way a comparison reads it."""
        return self in (Metric.VALIDATION_PSNR_STAGE1, Metric.VALIDATION_PSNR_RESTORED, Metric.IMAGES_PER_S, Metric.MFU)
