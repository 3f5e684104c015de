"""Model FLOPs utilisation: the arithmetic a run needs per token, and what its device could do."""

PEAK_TFLOPS = {
    # Per device: dense bf16 (fp16 where marked) with fp32 accumulation, from the vendor's data sheet.
    # Names are matched as substrings of torch.cuda.get_device_name(), in this order.
    "B200": 2250.0,  # NVIDIA HGX B200 data sheet
    "H200": 989.4,  # NVIDIA H200 data sheet (SXM)
    "H100 PCIe": 756.5,  # NVIDIA H100 data sheet
    "H100 NVL": 835.5,
    "H100": 989.4,  # SXM
    "A100": 312.0,  # NVIDIA A100 data sheet
    "L40S": 362.0,  # NVIDIA L40S data sheet
    "L4": 121.0,  # NVIDIA L4 data sheet
    "A10G": 70.0,  # AWS G5: half of the A10's 125
    "A10": 125.0,  # NVIDIA A10 data sheet
    "V100": 125.0,  # fp16, NVIDIA V100 data sheet (SXM2)
    "T4": 65.0,  # fp16, NVIDIA T4 data sheet
    "RTX 4090": 165.2,  # NVIDIA Ada architecture white paper, fp32 accumulate
    "RTX 3090": 71.0,  # NVIDIA Ampere GA102 white paper, fp32 accumulate
}


def peak_flops(device_name: str) -> float | None:
    """Peak FLOP/s of one device in 16-bit training, or None when it is not in the table (then there is no MFU)."""
    return next((peak * 1e12 for name, peak in PEAK_TFLOPS.items() if name in device_name), None)


def training_flops_per_token(
    matmul_parameters: float, trainable_fraction: float, num_layers: int, hidden_size: int, mean_length: float
) -> float:
    """FLOPs of forward and backward for one token, recomputation not counted.

    ``matmul_parameters``: all but the input embedding (a tied head counts once). A parameter costs 2 FLOPs forward,
    2 for the gradient of its input and, when it is trained, 2 for its own gradient: 6N for full fine-tuning (PaLM,
    appendix B, https://arxiv.org/abs/2204.02311), about 4N for adapters. Causal attention over documents of
    ``mean_length`` tokens adds 6 x layers x hidden x length (half of PaLM's 12, since half of the scores are masked).
    """
    return matmul_parameters * (4 + 2 * trainable_fraction) + 6 * num_layers * hidden_size * mean_length
