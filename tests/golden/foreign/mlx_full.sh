mlx_lm.lora --model {model} --train --data {folder} --fine-tune-type full \
  --num-layers 2 --batch-size 2 --iters 2 --learning-rate 1e-5 --adapter-path adapters-full
