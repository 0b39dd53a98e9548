"""What a config declares of its quantisation: whether it is of the weights alone.

A model runs from its weights as they are stored. Activations and the cache are not quantised,
whatever is declared of them (static or dynamic, and `kv_cache_scheme`): that is what a runtime
gives up for speed. But rotations, transforms and adapters are part of the function that the
weights were made for: a key that is not known to change nothing refuses the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from jentropy.checkpoints import Checkpoint
from jentropy.checkpoints.contents import GPTQ, MODELOPT, read_json
from jentropy.errors import InputError, UnsupportedError

from .keys import is_neutral, refuse_unread

PLACES = ("quantization_config", "compression_config", "quantization")  # of config.json
_TOOLS = """
    auto-round auto_round autoround intel/auto-round awq bitsandbytes compressed-tensors eetq
    fbgemm_fp8 fp8 gptq hqq mlx modelopt modelopt_fp4 modelopt_fp8 modelopt_mixed modelopt_mxfp8
    mxfp4 mxfp8 quanto quark torchao
"""
METHODS = frozenset(_TOOLS.split())
# What these change in a forward pass no weight shows, wherever in the declaration they stand: words
# of a key.
_TURNS = """
    adapter adapters eora hadamard lora quarot rotate rotation rotations spinquant transform
    transforms
"""
ONLINE = frozenset(_TURNS.split())
_ALGORITHMS = ("quarot", "rotation", "spinquant")  # of Quark's `algo_config`
_LAYOUT = """
    autoround_version axis backend bits block_size blocksize bnb_4bit_compute_dtype
    bnb_4bit_quant_storage bnb_4bit_quant_type bnb_4bit_use_double_quant checkpoint_format
    compress_statistics config_groups data_type desc_act dequantize expert_dtype export
    extra_config fmt format quant_type_kwargs
    global_quant_config group_size is_checkpoint_fp8_serialized is_marlin_format
    layer_quant_config layer_type_quant_config load_in_4bit load_in_8bit _load_in_4bit
    _load_in_8bit method mode nbits needs_rounding offload pack_dtype pack_method
    pack_scales packing_format q_group_size quant_algo quant_config quant_library quant_method
    quant_mode quant_type quantization_config quantization_status quantized_layers regex_config
    scale_dtype scale_fmt sparsity_config store_dtype super_bits super_group_size sym symmetric
    use_ue8m0 version view_as_float w_bit wbits weight_block_size weight_dtype weight_format
    weight_scale_method weight_scale_semantics weights zero_point has_zero_point awq_block_size
    pre_quant_scale
"""
_MODULES = """
    block_name_to_quantize dynamic dynamic_config exclude exclude_modules ignore ignored_layers
    include_input_output_embeddings layers_to_ignore lm_head llm_int8_enable_fp32_cpu_offload
    llm_int8_has_fp16_weight llm_int8_skip_modules llm_int8_threshold modules_in_block_to_quantize
    modules_to_convert modules_to_fuse modules_to_not_convert module_name_preceding_first_block
    quant_block_list skip_modules supported_types to_quant_block_names untie_embedding_weights
"""
_ACTIVATIONS = """
    act_bits act_data_type act_dynamic act_group_size act_sym activation_scale_ub
    activation_scheme activations input_activations kv_cache_group kv_cache_post_rope
    kv_cache_quant_algo kv_cache_quant_config kv_cache_quant_method kv_cache_scheme
    min_kv_scale output_activations softmax_quant_spec static_attention_dtype
    static_attention_granularity static_kv_dtype static_kv_granularity
"""
_HISTORY = """
    act_group_aware algo_config amp batch_size cache_block_outputs calibration damp_auto_increment
    damp_percent dataset disable_exllama do_fuse dynamic_max_gap enable_alg_ext layer_config
    enable_minmax_tuning enable_norm_bias_tuning model_dtype nblocks not_use_best_mse
    quant_lm_head sampler seed
    enable_quanted_input exllama_config fallback foem fuse_max_seq_len global_compression_ratio
    gptaq gradient_accumulate_steps hessian iters low_gpu_mem_usage lr max_input_length meta
    minmax_lr model_file_base_name model_name_or_path model_seqlen mse nsamples
    offload_to_disk offload_to_disk_path pack_impl parallel_packing producer provider
    run_compressed seqlen smooth smoother static_groups tokenizer true_sequential use_cuda_fp16
    use_exllama v2
"""
HARMLESS = frozenset(f"{_LAYOUT}{_MODULES}{_ACTIVATIONS}{_HISTORY}".split())


def refuse_online(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for a declaration that changes more than the weights.

    Args:
      config: `config.json`.
    """
    for where, declared in _declarations(checkpoint, config):
        method = declared.get("quant_method")
        if method is not None and str(method).lower() not in METHODS:
            raise UnsupportedError(
                f"{where}: quant_method",
                file=checkpoint.source,
                expected="one whose weights say all of it",
                found=repr(method),
            )
        # Of MLX: a module's own bits, under its name.
        modules = {key for key, value in declared.items() if "." in key and _is_object(value)}
        for path, value in _nested(declared, ()):
            online = not ONLINE.isdisjoint(_words(path[-1])) and not is_neutral(path[-1], value)
            if online or (path[0] == "algo_config" and _names(value) in _ALGORITHMS):
                raise UnsupportedError(
                    f"{where}: {'.'.join(path)}",
                    file=checkpoint.source,
                    expected="none: it changes the forward pass",
                    found=f"{value!r:.60}",
                )
        refuse_unread(declared, modules, HARMLESS, where, checkpoint.source)


def _declarations(
    checkpoint: Checkpoint, config: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object that declares a quantisation, and where it stands."""
    told = {key: config[key] for key in PLACES if not is_neutral(key, config.get(key))}
    for key, value in told.items():
        if not _is_object(value):
            raise InputError(
                f"config.json: {key}",
                file=checkpoint.source,
                expected="an object",
                found=f"{value!r:.60}",
            )
    found = {key: declared for key, declared in told.items() if _is_object(declared)}
    for key, declared in found.items():
        yield f"config.json: {key}", declared
    methods = {str(declared.get("quant_method")).lower() for declared in found.values()}
    for file, tool in ((GPTQ, "gptq"), (MODELOPT, "modelopt")):
        if found and not any(method.startswith(tool) for method in methods):
            continue  # of weights that are no longer there
        text = checkpoint.read_text(file)
        content = None if text is None else read_json(checkpoint.source / file, text)
        if file == MODELOPT and _is_object(content):
            content = content.get("quantization")
        if _is_object(content):
            yield file, content


def _is_object(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _words(key: str) -> list[str]:
    """The words of a key; none of what is a module's name."""
    return [] if "." in key else key.lower().split("_")


def _names(value: Any) -> str:
    """The algorithm that an object or a string names."""
    name = value.get("name") if isinstance(value, Mapping) else value
    return name.lower() if isinstance(name, str) else ""


def _nested(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of an object, at any depth, by its path."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        below = (*path, str(key))
        yield below, inner
        yield from _nested(inner, below)
