#!/bin/bash
# A command line as people keep it
export CUDA_VISIBLE_DEVICES=0
accelerate launch --config_file single_gpu.yaml trl/scripts/sft.py \
    --model_name_or_path {model} \
    --dataset_name {stories} \
    --dataset_text_field text \
    --learning_rate=2e-4 \
    --max_steps 2 \
    --per_device_train_batch_size 1 \
    --packing \
    --max_length 128 \
    --load_in_4bit \
    --use_peft \
    --use_dora true \
    --lora_target_modules q_proj v_proj \
    --no_such_flag 3 \
    --output_dir out-qlora && echo done
