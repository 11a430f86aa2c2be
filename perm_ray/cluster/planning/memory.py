"""Memory of an engine and of a trainer rank, term by term, in bytes; GB is 2^30 bytes throughout.

Sources: vLLM 0.32 (`gpu_memory_utilization` bounds weights, activations, graphs and cache together), the
ZeRO paper (arXiv 1910.02054, section 3) with what DeepSpeed 0.19 does beyond it, the activation count of
arXiv 2205.05198 (section 4) for a gated MLP and RMS norms, and `trainer/head.py`. Where a figure can only be
assumed it is one of the constants below, chosen on the high side. Used by `plan.py`; pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from perm_ray.cluster.planning.shapes import ModelShape
from perm_ray.config.engines import EngineConfig
from perm_ray.config.training import SyncConfig, TrainerConfig
from perm_ray.models.vllm import GPU_BATCH_TOKENS
from perm_ray.trainer.buffer_sizes import BUCKET_ELEMENTS, HEAD_BLOCK_ELEMENTS

GB = 2**30
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

# Assumed.
PROCESS_BYTES = 1 * GB  # of a CUDA context and its libraries; on a CPU of a process with torch
NCCL_BYTES = 1 * GB  # buffers of the communicators of a process on GPUs that has peers
GRAPH_BYTES = 1 * GB  # of vLLM's CUDA graphs

BLOCK_TOKENS = 16  # of a block of vLLM's KV cache on a GPU (32 on a CPU)
CPU_KV_GB = 0.5  # `engine_kwargs` on a CPU, when kv_cache_gb is null
SENDER_BYTES, NUM_SENDER_BUFFERS = 1 * GB, 2  # vLLM's packed NCCL transfer; sync.chunk_mb is gloo's
LIVE_ELEMENTS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
PREFETCH_ELEMENTS = 50_000_000  # its stage3_prefetch_bucket_size
HEAD_COPIES = 6  # float32 tensors of the size of a block of logits at once


@dataclass(frozen=True)
class EngineMemory:
    """One engine's bytes on each of its GPUs, or of host memory; `sequences` of full length fit its cache."""

    weights: int
    activations: int
    graphs: int
    overhead: int
    sync_buffers: int
    kv_cache: int
    kv_bytes_per_token: int
    sequences: int

    @property
    def total(self) -> int:
        return self.without_cache + max(0, self.kv_cache)

    @property
    def without_cache(self) -> int:
        return self.weights + self.activations + self.graphs + self.overhead + self.sync_buffers


@dataclass(frozen=True)
class RankTerms:
    """The memory of one trainer rank on its GPU (or in host memory) in one phase of its work, in bytes."""

    phase: str
    weights: int
    optimizer: int
    gradients: int
    reference: int
    activations: int
    buffers: int
    overhead: int

    @property
    def total(self) -> int:
        held = self.weights + self.optimizer + self.gradients + self.reference
        return held + self.activations + self.buffers + self.overhead


@dataclass(frozen=True)
class RankMemory:
    """A rank in each of its phases; `host` are its bytes of host memory beside a GPU, at their most."""

    phases: tuple[RankTerms, ...]
    host: int

    @property
    def peak(self) -> RankTerms:
        return max(self.phases, key=lambda terms: terms.total)


# ---- engines --------------------------------------------------------------------------------


def kv_bytes_per_token(shape: ModelShape, width: int, tensor_parallel_size: int) -> int:
    """Return the bytes of keys and values: 2 * layers * kv_heads / TP * head_dim * bytes of an element.

    With more GPUs than key-value heads each GPU holds a copy of one.
    """
    heads = max(1, shape.kv_heads // tensor_parallel_size)
    return 2 * shape.layers * heads * shape.head_dim * width


def engine_memory(
    shape: ModelShape, engine: EngineConfig, gpu_bytes: int, sync: SyncConfig | None
) -> EngineMemory:
    """`sync` for an engine that receives weights. The cache is `kv_cache_gb`, or what vLLM would give it:

    gpu_memory_utilization * GPU - (weights + activations + graphs + overhead)

    Buffers of the weight sync come on top: vLLM does not know of them when it sizes the cache. Activations
    are those of one pass over `max_num_batched_tokens`: 4 hidden states, the layer's projections, and three
    float32 rows of logits for each sequence.
    """
    width, parallel = BYTES[engine.dtype], engine.tensor_parallel_size
    on_gpu = engine.num_gpus > 0
    weights = -(-shape.parameters * width // parallel)
    batch = max(engine.max_model_len, GPU_BATCH_TOKENS if on_gpu else 2048)  # `engine_kwargs`
    split = 3 * shape.intermediate + shape.query_width + 2 * shape.kv_width
    logits = 3 * 4 * engine.max_num_seqs * shape.vocabulary
    activations = width * batch * (4 * shape.hidden + split // parallel) + logits
    graphs = GRAPH_BYTES if on_gpu and not engine.enforce_eager else 0
    by_nccl = on_gpu and sync is not None and sync.backend == "nccl"
    overhead = PROCESS_BYTES + (NCCL_BYTES if on_gpu and (parallel > 1 or by_nccl) else 0)
    if engine.kv_cache_gb is not None or not on_gpu:
        cache = int((engine.kv_cache_gb or CPU_KV_GB) * GB)
    else:
        cache = int(engine.gpu_memory_utilization * gpu_bytes) - weights - activations - graphs - overhead
    per_token = kv_bytes_per_token(shape, width, parallel)
    block = BLOCK_TOKENS if on_gpu else 2 * BLOCK_TOKENS
    per_sequence = -(-engine.max_model_len // block) * block * per_token
    return EngineMemory(
        weights=weights,
        activations=activations,
        graphs=graphs,
        overhead=overhead,
        sync_buffers=_transfer_buffers(shape, width, sync, on_gpu) if sync is not None else 0,
        kv_cache=cache,
        kv_bytes_per_token=per_token,
        sequences=max(0, cache // per_sequence),
    )


def _transfer_buffers(shape: ModelShape, width: int, sync: SyncConfig, on_gpu: bool) -> int:
    """Return the bytes of a transfer's buffers: on a GPU those of NCCL, since gloo's lie in host memory. A
    chunk is closed by the tensor that fills it, so it may be larger by the largest tensor."""
    largest = width * shape.largest_tensor
    if on_gpu and sync.backend != "nccl":
        return largest  # a tensor on its way between host and device
    if on_gpu:
        return NUM_SENDER_BUFFERS * (SENDER_BYTES + largest)
    return (sync.chunk_mb << 20) + largest


# ---- the trainer ----------------------------------------------------------------------------


def layer_activation_bytes(
    shape: ModelShape, width: int, lora_rank: int = 0, share_prompts: bool = False
) -> int:
    """Return what one decoder layer keeps of each token for its backward pass, in bytes; h hidden, a and k
    the widths of queries and keys, i intermediate, w bytes of an element:

        2 residuals               2 w h
        2 RMS norms               2 (4 + 2 w) h     a float32 copy, the normalised and the scaled
        attention's inputs        w (a + 2 k)
        its output, and o_proj's  2 w a + 4 heads   twice: sequences are joined; log-sums in float32
        keys and values joined    4 w k             only where completions share a prompt that is as long
        gated MLP                 4 w i             gate, its SiLU, up, their product
        LoRA                      7 w rank

    Attention keeps no matrix of scores. For w = 2 and i = 4 h with a = k = h this is 62 h; arXiv 2205.05198
    counts 34 h for a plain MLP, whose norms need no float32 copies. A test holds it against what torch keeps,
    which is some 7 % less.
    """
    norms = 2 * (4 + 2 * width) * shape.hidden
    inputs = width * (shape.query_width + 2 * shape.kv_width)
    joined = 4 * width * shape.kv_width if share_prompts else 0
    outputs = 2 * width * shape.query_width + 4 * shape.heads
    mlp = 4 * width * shape.intermediate
    return 2 * width * shape.hidden + norms + inputs + joined + outputs + mlp + 7 * width * lora_rank


def head_bytes(shape: ModelShape, width: int, tokens: int, device: str = "cpu") -> int:
    """Return the head in blocks of the vocabulary (`trainer/head.py`): the hidden states, their gradient in
    float32, and a few float32 tensors of [tokens x block]; never [tokens x vocabulary]."""
    block = min(shape.vocabulary, max(256, HEAD_BLOCK_ELEMENTS[device] // tokens // 64 * 64))
    return tokens * (shape.hidden * (2 * width + 4) + 4 * HEAD_COPIES * block)


def rank_memory(shape: ModelShape, trainer: TrainerConfig, sync: SyncConfig, longest: int) -> RankMemory:
    """Return one of `num_ranks` ranks; `longest` is the longest sequence, prompt and completion.

    P parameters, T of them trained (a LoRA adapter, else all), w bytes of an element, N ranks:

        weights      w P        / N from stage 3 on        (and w T for an adapter)
        optimizer    (4 + 8) T  / N from stage 1 on        float32 master and Adam's moments; 8 T at stage 0
        gradients    (w + 4) T  / N from stage 2 on        and their float32 sum; 4 T at stage 0
        reference    w P        whole on every rank, and none with an adapter
    """
    width, num = BYTES[trainer.dtype], trainer.num_ranks
    stage, lora = trainer.zero_stage, trainer.lora
    adapter = shape.adapter_parameters(lora.rank, lora.targets)
    trained = adapter or shape.parameters
    whole = width * shape.parameters
    weights = width * (shape.parameters + adapter) // (num if stage == 3 else 1)
    optimizer = (12 if stage else 8) * trained // (num if stage else 1)
    gradients = (width + 4 if stage else 4) * trained // (num if stage >= 2 else 1)
    needs_copy = trainer.objective.kl_coef > 0 and not adapter
    reference = whole if needs_copy else 0
    on_device = 0 if trainer.offload_optimizer else optimizer
    resting = 0 if trainer.offload_reference else reference
    on_gpu = trainer.num_gpus > 0
    overhead = PROCESS_BYTES + (NCCL_BYTES if on_gpu else 0)

    def phase(name: str, reference: int, activations: int, buffers: int) -> RankTerms:
        return RankTerms(name, weights, on_device, gradients, reference, activations, buffers, overhead)

    tokens = max(trainer.micro_batch_tokens, longest)
    layer = tokens * layer_activation_bytes(shape, width, lora.rank, trainer.share_prompts)
    kept = shape.layers * (tokens * width * shape.hidden if trainer.gradient_checkpointing else layer)
    head = head_bytes(shape, width, tokens, "cuda" if trainer.num_gpus > 0 else "cpu")
    again = 2 * layer if trainer.gradient_checkpointing else layer  # made anew, and its gradients
    gathered = _gathered(shape, width) if stage == 3 else 0
    send = _transfer_buffers(shape, width, sync, on_gpu)
    if stage == 3:  # tensors wait, gathered, for their chunk
        send += (SENDER_BYTES if on_gpu else sync.chunk_mb << 20) + width * shape.largest_tensor
    if adapter:  # merged in float32: the weight and what is added to it
        send += 8 * max(wide * high for wide, high in shape.matrices.values())
    phases = (
        RankTerms("load", whole + (weights if stage == 3 else 0), 0, 0, 0, 0, 0, overhead),
        phase("forward", reference, kept + layer + head, gathered),
        phase("backward", resting, kept + again + head, gathered + _reduction(shape, trainer, trained)),
        phase("update", resting, 0, 4 * trained // (num if stage else 1)),  # float32 gradients, flattened
        phase("weight sync", resting, 0, send),
    )
    host = _host_bytes(trainer, trained, whole, reference) if on_gpu else 0
    return RankMemory(phases, host)


def _gathered(shape: ModelShape, width: int) -> int:
    """Return weights that ZeRO-3 holds whole at a time: what DeepSpeed lets live and fetches ahead, and the
    head."""
    ahead = LIVE_ELEMENTS + PREFETCH_ELEMENTS
    return width * (min(ahead, shape.parameters) + shape.largest_tensor)


def _reduction(shape: ModelShape, trainer: TrainerConfig, trained: int) -> int:
    """Return gradients on their way to their rank: float32 buckets (two, four where they overlap), and the
    head's gradient, which is larger than a bucket, in both types."""
    if trainer.zero_stage == 0:
        return 0
    on_gpu = trainer.num_gpus > 0
    count = 4 if trainer.zero_stage == 3 or on_gpu else 2
    buckets = count * 4 * min(BUCKET_ELEMENTS["cuda" if on_gpu else "cpu"], trained)
    whole_head = trainer.lora.rank == 0 and trainer.zero_stage >= 2
    return buckets + ((BYTES[trainer.dtype] + 4) * shape.embedding_parameters if whole_head else 0)


def _host_bytes(trainer: TrainerConfig, trained: int, whole: int, reference: int) -> int:
    """Host memory of rank 0, which has most: the model while it is loaded; or what was moved there, the
    moving average, and a checkpoint's copy of the optimizer and of what is trained."""
    num = trainer.num_ranks if trainer.zero_stage else 1
    moved = (reference if trainer.offload_reference else 0) + (
        16 * trained // num if trainer.offload_optimizer else 0
    )
    average = 4 * trained if trainer.ema_decay > 0 else 0
    copy = 12 * trained // num + BYTES[trainer.dtype] * trained
    return PROCESS_BYTES + max(whole + moved, moved + average + max(copy, whole))
