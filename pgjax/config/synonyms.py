"""What does pgjax call a setting that users of other trainers know by another name?

The words are those of Hugging Face's trainer, PEFT, TRL, Lightning and big_vision. They are
answered with the name here; none is accepted, because many mean something slightly different.
"""

from collections.abc import Iterable

_EVAL = "evals.NAME."  # NAME: of an entry of config.evals.
# The fields that mean the same, with the words for each.
_FIELDS = {
  "lr": "learning_rate base_lr max_lr peak_lr base_learning_rate",
  "total_epochs": "epochs num_epochs num_train_epochs max_epochs n_epochs train_epochs",
  "total_steps": "max_steps num_steps train_steps num_train_steps max_train_steps training_steps"
  " num_training_steps max_iters iterations",
  "wd": "weight_decay",
  "grad_clip_norm": "max_grad_norm gradient_clip_val clip_grad_norm grad_clip clip_norm"
  " gradient_clipping",
  "label_smoothing": "label_smoothing_factor",
  "text_len": "max_length max_seq_length max_seq_len model_max_length seq_len seq_length"
  " sequence_length max_input_length context_length block_size cutoff_len",
  "res": "image_size img_size resolution image_resolution input_size",
  "seed": "random_seed random_state manual_seed data_seed",
  "tokenizer": "tokenizer_name tokenizer_path tokenizer_name_or_path",
  "model_init": "model_name_or_path pretrained_model_name_or_path model_id model_path pretrained"
  " base_model base_model_name_or_path init_from load_from init_checkpoint",
  "ckpt_steps": "save_steps save_interval save_every save_freq save_every_n_steps"
  " checkpoint_steps checkpointing_steps checkpoint_interval save_iters",
  "ckpt_epochs": "save_epochs save_every_n_epochs",
  "keep_last": "save_total_limit max_checkpoints keep_checkpoints max_to_keep",
  "log_training_steps": "logging_steps log_every log_every_n_steps log_interval print_freq"
  " log_freq",
  "optax_name": "optim optimizer optimizer_name optimizer_type",
  "optax.b1": "adam_beta1 beta1 beta_1",
  "optax.b2": "adam_beta2 beta2 beta_2",
  "optax.eps": "adam_epsilon adam_eps epsilon",
  "schedule.warmup_percent": "warmup_ratio warmup_fraction warmup_proportion",
  "schedule.warmup_steps": "num_warmup_steps lr_warmup_steps warmup_iters",
  "schedule.warmup_epochs": "num_warmup_epochs",
  "schedule.decay_type": "lr_scheduler_type lr_scheduler scheduler scheduler_type lr_schedule"
  " lr_decay_style",
  "model.llm.dropout": "dropout_rate hidden_dropout resid_pdrop",
  "model.llm.cache_dtype": "kv_cache_dtype",
  "ema_decay": "ema use_ema ema_rate",
  "remat": "gradient_checkpointing activation_checkpointing use_gradient_checkpointing"
  " checkpoint_activations",
  "input.num_threads": "dataloader_num_workers workers num_data_workers preprocessing_num_workers",
  "input.cache_mb": "cache_images cache_dataset",
  f"{_EVAL}batch_size": "per_device_eval_batch_size eval_batch_size val_batch_size",
  f"{_EVAL}max_decode_len": "max_new_tokens generation_max_length max_target_length max_tokens"
  " max_gen_len val_max_target_length",
  f"{_EVAL}log_steps": "eval_steps eval_every eval_interval eval_freq val_check_interval"
  " evaluation_steps validation_steps",
  f"{_EVAL}log_epochs": "eval_epochs check_val_every_n_epoch",
  "keep_best": "metric_for_best_model load_best_model_at_end monitor greater_is_better",
}
_SENTENCES = {
  "Here it is `input.batch_size`, over all devices; write --config.input.batch_size=....": (
    "per_device_train_batch_size train_batch_size per_gpu_train_batch_size micro_batch_size"
    " global_batch_size batch bs"
  ),
  "Here it is `microbatches`, into which a batch of input.batch_size is divided; write"
  " --config.microbatches=....": (
    "gradient_accumulation_steps grad_accum grad_accum_steps accum_steps accumulate_grad_batches"
    " gradient_accumulation accumulation_steps"
  ),
  "Here it is `dtype`; write --config.dtype=bfloat16 (float16 is for storage only).": (
    "bf16 fp16 torch_dtype precision mixed_precision half amp use_amp compute_dtype bfloat16"
    " bf16_full_eval fp16_full_eval"
  ),
  "Here adapters are chosen by the config's argument tune=lora (docs/lora.md); write"
  " --config=configs/forkme.py:tune=lora, or set --config.params="
  "\"[('llm/layers/.*', 'lora(rank=8, alpha=16)'), ('.*', 'freeze')]\".": (
    "lora_r lora_rank r rank lora_alpha lora_dropout lora_target_modules target_modules use_lora"
    " lora peft use_peft peft_config modules_to_save use_rslora lora_config"
  ),
  "Here it is the config's argument tune=qlora (4 bits) or tune=qlora8 (8 bits), docs/lora.md.": (
    "load_in_4bit load_in_8bit qlora quantization quantization_config bnb_4bit_quant_type"
    " bnb_4bit_compute_dtype use_qlora"
  ),
  "Here it is `params`, or the config's argument tune=: no_vit, decoder, connector, attention, ..."
  " (docs/lora.md).": (
    "freeze freeze_vision_tower freeze_vision_model freeze_vit freeze_backbone freeze_encoder"
    " freeze_llm freeze_language_model tune_mm_mlp_adapter trainable unfreeze"
  ),
  'Here it is `decode`, one text such as "beam(3)" or "nucleus(0.9, t=0.7)"; write'
  ' --config.decode="beam(3)" (docs/decoding.md).': (
    "num_beams beam_size generation_num_beams beams temperature top_p top_k do_sample"
    " num_return_sequences length_penalty"
  ),
  "Here it is the flag --workdir, a folder; rerunning the same command resumes it.": (
    "output_dir out_dir save_dir log_dir logging_dir checkpoint_dir ckpt_dir default_root_dir"
    " overwrite_output_dir work_dir resume_from_checkpoint resume ckpt_path"
  ),
  "Here it is `input.data`, or the argument train= of configs/forkme.py and configs/detect.py"
  " (docs/data.md).": (
    "dataset dataset_name train_file train_data data_path train_path train_dataset dataset_path"
    " training_data train_dir dataset_config_name"
  ),
  "Here it is `evals`, or the argument val= of configs/forkme.py and configs/detect.py"
  " (docs/evaluation.md).": (
    "validation_file eval_file val_file test_file eval_dataset val_data eval_data val_path"
    " validation_data"
  ),
  "Here an evaluator runs every log_steps or log_epochs: write --config.evals.NAME.log_epochs=1.": (
    "eval_strategy evaluation_strategy do_eval"
  ),
  "Here checkpoints are saved every ckpt_steps or ckpt_epochs: write --config.ckpt_epochs=1.": (
    "save_strategy checkpointing"
  ),
  "Here it is `sharding_strategy` and `mesh`; all devices are used, and parameters are sharded"
  " by default.": (
    "deepspeed fsdp ddp strategy fsdp_config tensor_parallel_size local_rank world_size"
    " nproc_per_node num_processes gpus num_gpus n_gpu devices num_nodes accelerator"
    " ddp_find_unused_parameters"
  ),
  "metrics.jsonl and TensorBoard files are always written to the workdir.": (
    "report_to wandb wandb_project use_wandb run_name log_with tensorboard tracker"
  ),
}
_FIELD_OF = {word: field for field, words in _FIELDS.items() for word in words.split()}
_TEXT_OF = {word: text for text, words in _SENTENCES.items() for word in words.split()}
# Of the commands that take no config: their flag, and the words for it.
_FLAGS = {
  "workdir": "output_dir out_dir save_dir log_dir logging_dir checkpoint_dir ckpt_dir work_dir"
  " default_root_dir resume_from_checkpoint",
  "ckpt": "model model_name model_name_or_path model_id model_path checkpoint checkpoint_path"
  " weights pretrained base_model workdir",
  "out": "output output_dir out_dir output_file outfile save_dir",
  "dst": "output output_dir out_dir save_dir out",
  "src": "model model_path model_name_or_path checkpoint input ckpt",
  "image": "image_path img image_file images input",
  "prompt": "question text query instruction prefix",
  "max_decode_len": "max_new_tokens max_length max_tokens",
  "decode": "num_beams beam_size temperature top_p top_k do_sample",
  "quantize": "load_in_4bit load_in_8bit quantization",
  "to": "format output_format",
  "raw": "data_dir input_dir dataset_dir",
  "jsonl": "input_file questions batch_file",
  "dtype": "torch_dtype precision bf16 fp16",
}


def hint(word: str, value: str | None = None, *, field: str | None = None) -> str:
  """` Here it is `lr`; write --config.lr=1e-4.`; "" for a word without a meaning here.

  value: what the user gave, which the sentence repeats. field: the field, where it is known.
  """
  word = _plain(word)
  if field is None and word in _TEXT_OF:
    return f" {_TEXT_OF[word]}"
  if (field := field or _FIELD_OF.get(word)) is None:
    return ""
  return f" Here it is `{field}`; write --config.{field}={_short(value)}."


def flag_hint(word: str, flags: Iterable[str]) -> str:
  """` Here it is --ckpt.`, if that is one of the flags of the command; else ""."""
  flags = set(flags)
  for flag, words in _FLAGS.items():
    if flag in flags and _plain(word) in words.split():
      return f" Here it is --{flag}; --help describes it."
  return ""


def _plain(word: str) -> str:
  return word.lower().replace("-", "_").lstrip("_")


def _short(value: str | None) -> str:
  return value if value and len(value) <= 40 and value.isprintable() else "..."
