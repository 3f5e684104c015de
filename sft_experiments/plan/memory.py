"""Peak memory of one device in a training step, from the model's config alone. Bytes throughout.

A step has two candidates for its peak: the start of the backward pass (everything the forward pass saved is alive) and
the optimizer step (weights, gradients, state and its temporaries). Terms, and where they come from:

- weights 4 bytes (pure bf16: 2), gradients the same, two Adam moments the same: Rajbhandari et al., "ZeRO",
  arXiv:1910.02054, section 3.1; under adapters frozen weights 2 bytes with bf16, QLoRA's matrices 4 bits and 8 bits of
  scale per 64 (arXiv:2305.14314);
- autocast keeps a bf16 copy of every fp32 matrix until the backward pass is over (its cache, and what autograd saves);
- activations: the tensors that autograd saves, counted as in Korthikanti et al., arXiv:2205.05198, section 4, for
  today's layers (RMSNorm, rotary embedding, SwiGLU, attention that saves no score matrix), see ``layer_bytes``;
- activation checkpointing keeps each layer's input, and one whole layer while it is recomputed (arXiv:1604.06174);
- logits of a block of supervised positions at a time (training/loss_head.py, on CUDA TRL's fused head).

With several devices: DDP's buckets for gradients, or with FSDP 1/n of all states (ZeRO, stage 3) and what is gathered.

Checked against measured peaks in docs/memory.md (benchmarks/memory_estimate.py). Not covered: fp16,
the eager attention's score matrix, mixtures of experts beyond their weights.
"""

from dataclasses import dataclass

from sft_experiments.models.shape import Shape
from sft_experiments.values import GIB

ROWS_PER_BLOCK = 256  # of logits on the CPU and MPS: training/loss_head.py
FUSED_TILE = (4096, 32_768)  # tokens x vocabulary: TRL's fused head on CUDA
NF4_BYTES = 0.5 + 1 / 64  # 4 bits, and an 8-bit scale for 64 weights
# CUDA context, cuBLAS workspace and allocator rounding: not in the formulae; 0.5 to 1 GiB is usual.
CUDA_RESERVE = 0.8 * GIB


@dataclass(frozen=True)
class Workload:
    """What a device does in a step."""

    precision: str  # fp32, bf16 (autocast; frozen weights in bf16) or pure_bf16
    per_device_batch: int
    length: int  # tokens of a sequence: the longest row, or the capacity of a pack
    accumulation: int = 1
    supervised_share: float = 1.0  # of the tokens
    device: str = "cuda"
    method: str = "full"  # full, lora or qlora
    lora_r: int = 0
    checkpointing: bool = False
    packed: bool = False
    optim: str = "adamw_torch"
    devices: int = 1  # that share a step
    sharded: bool = False  # weights, gradients and optimizer state lie in parts on the devices (FSDP)

    @property
    def tokens(self) -> int:
        return self.per_device_batch * self.length

    @property
    def state_bytes(self) -> int:
        """Of a trained weight, its gradient, and each of Adam's moments; adapters are kept in fp32."""
        return 2 if self.precision == "pure_bf16" and self.method == "full" else 4

    @property
    def weight_bytes(self) -> int:
        """Of a weight that is trained without adapters or frozen under them, and of the values between layers."""
        return self.state_bytes if self.method == "full" or self.precision == "fp32" else 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose. ``total`` is the peak."""

    weights: float
    weight_casts: float
    gradients: float
    optimizer_state: float
    optimizer_temporaries: float
    activations: float  # saved by the layers, all of them alive when the backward pass starts
    logits: float  # the last norm and the loss head, before the backward pass
    layer_workspace: float  # one layer in the backward pass, recomputed when checkpointing
    accumulates: bool  # gradients of earlier micro-batches are alive in the backward pass
    reserve: float
    buckets: float = 0.0  # in which DDP averages gradients
    gathered: float = 0.0  # what FSDP has whole at the height of the backward pass

    @property
    def backward_peak(self) -> float:
        earlier = self.gradients if self.accumulates else 0.0
        resident = self.weights + self.weight_casts + self.optimizer_state + earlier + self.buckets + self.gathered
        return resident + self.activations + max(self.logits, self.layer_workspace)

    @property
    def optimizer_peak(self) -> float:
        resident = self.weights + self.gradients + self.optimizer_state + self.buckets
        return resident + self.optimizer_temporaries

    @property
    def total(self) -> float:
        return max(self.backward_peak, self.optimizer_peak) + self.reserve


def estimate_memory(shape: Shape, work: Workload) -> MemoryEstimate:
    """The estimate for a model of this shape under this load."""
    trained = shape.parameters if work.method == "full" else shape.lora_parameters(work.lora_r)
    parts = work.devices if work.sharded else 1
    state = work.state_bytes
    return MemoryEstimate(
        weights=_weights(shape, work) / parts,
        weight_casts=0.0 if work.sharded else _casts(shape, work),  # FSDP gathers in the precision of the arithmetic
        gradients=trained * state / parts,
        optimizer_state=trained * state * _moments(work.optim) / parts,
        optimizer_temporaries=_temporaries(shape, work, trained * state) / parts,
        activations=_activations(shape, work),
        logits=_last_norm(shape, work) + _logits(shape, work),
        layer_workspace=_layer_workspace(shape, work),
        accumulates=work.accumulation > 1,
        reserve=CUDA_RESERVE if work.device == "cuda" else 0.0,
        buckets=trained * state if work.devices > 1 and not work.sharded else 0.0,
        gathered=_gathered(shape, work) if work.sharded else 0.0,
    )


def _gathered(shape: Shape, work: Workload) -> float:
    """What FSDP holds whole in the backward pass: the embeddings and the head, and some layers.

    The layer at work; the next one, in the buffer that it arrives in and copied out of it, beside the part that was
    sent; when it is trained, its gradient, again in the buffer that is summed over ranks, and the part that is kept,
    both in fp32.
    https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html (prefetching, one buffer for each layer)
    """
    wide = 4 if work.precision == "fp32" else 2
    layer = shape.linear_parameters / shape.layers + 2 * shape.hidden
    rest = shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + shape.hidden
    part = 1 / work.devices
    gradient = wide + 4 * (1 + part) if work.method == "full" else 0
    return wide * rest + (wide * (3 + part) + gradient) * layer


def _weights(shape: Shape, work: Workload) -> float:
    adapters = 0 if work.method == "full" else work.state_bytes * shape.lora_parameters(work.lora_r)
    inside = shape.linear_parameters * (NF4_BYTES if work.method == "qlora" else work.weight_bytes)
    return inside + (shape.parameters - shape.linear_parameters) * work.weight_bytes + adapters


def _casts(shape: Shape, work: Workload) -> float:
    """bf16 copies of fp32 matrices, with checkpointing those of one layer at a time; one 4-bit matrix at a time."""
    if work.precision == "fp32" or (work.precision == "pure_bf16" and work.method == "full"):
        return 0.0
    of_layers = 1 / shape.layers if work.checkpointing else 1.0
    if work.method == "full":
        return 2.0 * (shape.linear_parameters * of_layers + shape.vocabulary * shape.hidden)
    unpacked = shape.hidden * shape.width if work.method == "qlora" else 0
    return 2.0 * (shape.lora_parameters(work.lora_r) * of_layers + unpacked)


def _moments(optim: str) -> float:
    """Copies of a weight's size that the optimizer keeps: 8-bit Adam a quarter of each of the two moments."""
    if "8bit" in optim:
        return 0.5
    return {"sgd": 0.0, "adafactor": 0.0}.get(optim, 2.0)


def _temporaries(shape: Shape, work: Workload, gradient_bytes: float) -> float:
    """On CUDA torch's default (foreach) needs about the size of the parameters more; fused and CPU loops do not.

    https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html
    """
    if work.device == "cuda":
        return 0.0 if "fused" in work.optim else gradient_bytes
    largest = shape.vocabulary * shape.hidden if work.method == "full" else shape.width * work.lora_r
    return 2.0 * largest * work.state_bytes


def _activations(shape: Shape, work: Workload) -> float:
    """What the layers save: everything, or with checkpointing each layer's input."""
    if work.checkpointing:
        return float(shape.layers * shape.hidden * work.tokens * work.weight_bytes)
    return shape.layers * layer_bytes(shape, work) * work.tokens


def _layer_workspace(shape: Shape, work: Workload) -> float:
    """Gradients inside the layer being worked on, that of the output matrix, and the layer itself if recomputed."""
    wide = 4 if work.precision == "fp32" else 2  # bytes of a matrix product's result
    inside = (2 * shape.width + shape.hidden) * wide * work.tokens
    recomputed = layer_bytes(shape, work) * work.tokens if work.checkpointing else 0.0
    return inside + recomputed + _head_gradient(shape, work)


def _last_norm(shape: Shape, work: Workload) -> float:
    wide = 4 if work.precision == "fp32" else 2
    kept = 3 if work.precision == "fp32" else 2  # input, normed and output; the output in bf16 counts below
    return (kept * shape.hidden * 4 + 2 * shape.hidden * work.supervised_share * wide) * work.tokens


def _head_gradient(shape: Shape, work: Workload) -> float:
    return shape.vocabulary * shape.hidden * 4.0 if work.method == "full" else 0.0


def layer_bytes(shape: Shape, work: Workload) -> float:
    """Bytes per token that one layer saves for the backward pass.

    h: hidden, q/k: query and key-value sizes, f: MLP width. Attention saves query, key, value and its output (2q + 2k);
    a gated MLP saves gate, its activation, up, and their product (4f). Packed rows on the CPU are joined by a copy (q).
    """
    h, q, k = shape.hidden, shape.query_size, shape.key_value_size
    f = shape.width
    products = 4 if shape.gated else 2
    joined = q if work.packed and work.device != "cuda" else 0
    if work.method != "full":
        return _adapted_layer_bytes(shape, work, joined)
    if work.precision == "fp32":
        return 4.0 * (6 * h + 2 * q + 2 * k + joined + products * f)  # 6h: two norms: input, normed, output
    attention_and_mlp = 2.0 * (2 * q + 2 * k + joined + products * f)
    if work.precision == "pure_bf16":
        return 16 * h + attention_and_mlp  # two norms: input in fp32, normed and output in bf16
    return 26 * h + attention_and_mlp  # two norms in fp32: 16h; each of q, k, v, gate, up keeps its own bf16 input: 10h


def _adapted_layer_bytes(shape: Shape, work: Workload, joined: int) -> float:
    """LoRA on every linear layer: frozen matrices save no input, but each adapter saves its own after dropout.

    Dropout saves its mask: one byte per value on CUDA, the multiplied noise itself on the CPU (of fp32 values; QLoRA's
    layers leave theirs in bf16).
    """
    h, q, k, f = shape.hidden, shape.query_size, shape.key_value_size, shape.width
    inner = 2 * q + 2 * k + joined + 3 * f  # attention, and the MLP without the input of its last matrix
    adapted = 5 * h + q + f  # inputs of q, k, v, gate, up; of o; of down
    noise = 2 if work.method == "qlora" and work.precision != "fp32" else 4
    mask = 1 if work.device == "cuda" else noise
    rank = 7 * work.lora_r
    if work.precision == "fp32":
        return 4 * (2 * h + inner + adapted + rank) + mask * adapted
    return 8 * h + 2 * (inner + adapted + rank) + mask * adapted


def _logits(shape: Shape, work: Workload) -> float:
    """The loss head: a block of logits, and the gradient of the output matrix when it is trained."""
    supervised = work.tokens * work.supervised_share
    if work.device == "cuda":
        tile = min(supervised, FUSED_TILE[0]) * min(shape.vocabulary, FUSED_TILE[1])
        return _head_gradient(shape, work) + tile * (4 if work.precision == "fp32" else 2)
    blocks = 3 if supervised > ROWS_PER_BLOCK else 2  # the block before is still alive
    return _head_gradient(shape, work) + blocks * min(supervised, ROWS_PER_BLOCK) * shape.vocabulary * 4.0
