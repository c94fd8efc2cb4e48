"""Train one model: `python train.py --config configs/lm/lstm.yaml --learning_rate 2e-3` (`--help` says more).

The same program is `hf-seqmodels train`. On two processes: `torchrun --nproc_per_node 2 train.py …`, on GPUs also
`accelerate launch train.py …`. What happens, in order (each is one function of hf_seqmodels):

    config.parse            the YAML recipe and the command line, checked before anything is loaded
    run.load_data           texts, tokenizer, windows
    run.build_model         any causal language model that transformers knows
    run.build_trainer       a transformers.Trainer with exact token means
    SeqTrainer.train        training, evaluation, checkpoints, log.jsonl
    run.score               the best checkpoint on validation and test
    run.save                model, tokenizer and result.json in the output directory
"""

import sys

from hf_seqmodels.run import main

if __name__ == "__main__":
    sys.exit(main())
