"""Token ids that all synthetic tasks share: four special tokens, then the task's own symbols."""

SPECIAL = ("<pad>", "<unk>", "</s>", "<mask>")
PAD, EOS, MASK = 0, 2, 3
FIRST = len(SPECIAL)
NO_LABEL = -100  # what losses and scores leave out
