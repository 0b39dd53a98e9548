"""Keys of `config.json` that change no forward pass of a decoder, whatever their values."""

from __future__ import annotations

HARMLESS_ENDS = ("_token_id", "_token_ids", "_dropout", "_dropout_prob", "_pdrop")
_TEXT = """
    _attn_implementation _attn_implementation_autoset _commit_hash _experts_implementation
    _flash_attn_2_enabled _from_auto _name_or_path architectures attn_implementation
    base_model_name_or_path dtype language license model_name model_type name_or_path
    params_dtype tags tokenizer_class tokenizer_type torch_dtype transformers.js_config
    fix_mistral_regex hub_model_id transformers_version unsloth_fixed unsloth_version weights_dtype
"""
_TRAINING = """
    bf16 dropout fp16 gradient_checkpointing initializer_range label2id id2label
    neftune_noise_alpha num_labels output_router_logits pretraining_tp problem_type
    router_aux_loss_coef sentence_transformers summary_activation summary_first_dropout
    summary_last_dropout summary_proj_to_labels summary_type summary_use_proj
    task_names task_specific_params finetuning_task use_gradient_checkpointing z_loss_coef
"""
_RUNNING = """
    cache_implementation chunk_size_feed_forward fused_mlp is_decoder is_llama_config
    max_seq_len max_seq_length max_sequence_length model_max_length output_attentions
    output_hidden_states return_dict seq_length tf_legacy_loss torchscript use_bfloat16 use_cache
    use_flash_attention use_flash_attention_2 use_flash_attn use_fused_mlp use_fused_rms_norm
    use_fused_rope use_liger_kernel use_return_dict use_sdpa
"""
_GENERATION = """
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size epsilon_cutoff eta_cutoff exponential_decay_length_penalty
    guidance_scale length_penalty max_length max_new_tokens min_length min_new_tokens min_p
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix
    remove_invalid_values renormalize_logits repetition_penalty return_dict_in_generate
    suppress_tokens temperature top_k top_p typical_p
"""
_ELSEWHERE = "compression_config quantization quantization_config"  # checked there
HARMLESS = frozenset(f"{_TEXT}{_TRAINING}{_RUNNING}{_GENERATION}{_ELSEWHERE}".split())
# Words of a key whose 1 stands for "not used"; under other names it is a switch.
_FACTORS = "factor multiplier n num percent pct ratio scale scaling size tp"
FACTORS = frozenset(_FACTORS.split())
# Keys whose 0 or 1 does not: of attention's scale, which is 1 / sqrt(head_dim) here.
_SCALES = """
    attention_multiplier attention_scale attention_scaling attn_multiplier attn_scale attn_scaling
    no_rope_layer_interval qk_scale query_pre_attn_scalar rotary_dim scaling softmax_scale
"""
NEVER_NEUTRAL = frozenset(_SCALES.split())
# Keys of a rope's parameters that tell how the model was made.
HARMLESS_ROPE = frozenset({"finetuned", "original_max_position_embeddings"})
